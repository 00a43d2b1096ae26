"""Experts that stay in the file: the same bits as with all in memory, whatever the budget."""

from __future__ import annotations

import gc
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.experts.file_linear import FileLinear
from swarm_node.shards.experts.store import READERS, ExpertStore, FileMlp
from swarm_node.shards.formats.blocks.experts import ExpertsConfig, RouterConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.dequantize import INTEGER_QTYPES
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.qtypes import GGUF_QTYPES, row_bytes
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.kernels import library
from swarm_node.shards.kernels.experts import HeldExperts, NativeExperts, NativeMlp
from swarm_node.shards.kernels.linear import (
    ActivationPrecision,
    NativeLinear,
    file_form,
    native_dense,
    native_file,
)
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError
from tests.shards.gguf_files import raw_values

try:
    library.library()
except NativeUnavailableError as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

HIDDEN, INNER, COUNT, BLOCKS = 256, 256, 12, 3
CONFIG = ExpertsConfig(COUNT, 3, MlpConfig(INNER), RouterConfig())
EXACT = ActivationPrecision.EXACT
STACKS = {"mixed": ("Q4_K", "Q6_K", "Q3_K"), "mixed with values": ("BF16", "Q5_0", "IQ4_XS")}
"""Types of an expert's gate, up and down."""
STACKS |= {qtype: (qtype,) * 3 for qtype in GGUF_QTYPES if qtype not in ("F16", *INTEGER_QTYPES)}


class Model(NamedTuple):
    """Blocks of experts: their tensors in a file, and experts that are all in memory."""

    file: MappedFile
    tensors: list[list[list[RawTensor]]]  # of each block, of each expert: gate, up, down
    routers: list[NativeLinear]
    held: list[NativeExperts]


def bytes_of(qtype: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    return raw_values(rng, (rows, HIDDEN), qtype).view(np.uint8)


def linear(raws: list[RawTensor]) -> NativeLinear:
    return native_file(raws, None, EXACT)


def forms(raws: list[RawTensor]) -> list[str]:
    return [str(file_form(raw.qtype)) for raw in raws]


def model(folder: Path, name: str) -> Model:
    """``up`` and ``gate`` of one type lie interleaved, row by row, as some files have them."""
    rng = np.random.default_rng(len(name))
    qtypes = STACKS[name]
    sizes = [row_bytes(qtype, HIDDEN) for qtype in qtypes]
    alike = sizes[0] == sizes[1]
    each = [
        [bytes_of(qtype, rows, rng) for qtype, rows in zip(qtypes, (INNER, INNER, HIDDEN), strict=True)]
        for _ in range(BLOCKS * COUNT)
    ]
    path = folder / f"{name}.bin"
    with path.open("wb") as out:
        out.write(b"head")
        for gate, up, down in each:
            first = np.stack((gate, up), 1).tobytes() if alike else gate.tobytes() + up.tobytes()
            out.write(first + down.tobytes())
    file, at = MappedFile(path), 4

    def taken(rows: int, size: int) -> np.ndarray:
        nonlocal at
        at += rows * size
        return file.slice(at - rows * size, rows * size).reshape(rows, size)

    def expert() -> list[RawTensor]:
        if alike:
            both = taken(2 * INNER, sizes[0])
            gate = RawTensor("gate", (INNER, HIDDEN), qtypes[0], both[::2])
            up = RawTensor("up", (INNER, HIDDEN), qtypes[1], both, np.arange(1, 2 * INNER, 2))
        else:
            gate, up = (
                RawTensor(part, (INNER, HIDDEN), qtype, taken(INNER, size))
                for part, qtype, size in zip(("gate", "up"), qtypes, sizes, strict=False)
            )
        return [gate, up, RawTensor("down", (HIDDEN, INNER), qtypes[2], taken(HIDDEN, sizes[2]))]

    tensors = [[expert() for _ in range(COUNT)] for _ in range(BLOCKS)]
    # native_file orders whole tensors: those of the plain reference are copies in order.
    plain = [[[RawTensor(r.name, r.shape, r.qtype, np.array(r.data)) for r in e] for e in b] for b in tensors]
    routers = [native_dense([rng.standard_normal((COUNT, HIDDEN), np.float32)], None) for _ in range(BLOCKS)]
    held = [
        NativeExperts(
            CONFIG,
            HIDDEN,
            router,
            HeldExperts(CONFIG.mlp, [NativeMlp(linear(e[:2]), linear(e[2:])) for e in block]),
        )
        for router, block in zip(routers, plain, strict=True)
    ]
    return Model(file, tensors, routers, held)


def stored(
    made: Model, slots: int, *, ahead: bool = True, half_life: float = 8.0
) -> tuple[ExpertStore, list[NativeExperts]]:
    store = ExpertStore()
    blocks = [
        store.add(
            CONFIG.mlp,
            [
                FileMlp(*(FileLinear(part, None, forms(part), EXACT) for part in (e[:2], e[2:])))
                for e in block
            ],
        )
        for block in made.tensors
    ]
    store.start(slots * store.needed_bytes // store.count, half_life=half_life)
    experts = [
        NativeExperts(CONFIG, HIDDEN, router, block)
        for router, block in zip(made.routers, blocks, strict=True)
    ]
    for one, following in pairwise(experts) if ahead else ():
        one.precede(following)
    return store, experts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def q4_0(folder: Path) -> Model:
    return model(folder, "Q4_0")


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, HIDDEN), np.float32)


@pytest.mark.parametrize("name", STACKS)
def test_every_form_is_packed_as_in_memory(folder: Path, name: str) -> None:
    made = model(folder, name)
    store, experts = stored(made, 5)
    for seed in range(4):
        x = rows(3, seed)
        for held, read in zip(made.held, experts, strict=True):
            assert np.array_equal(read(x), held(x))
    store.check()
    assert store.state().read >= 5
    assert store.nbytes <= 5 * store.needed_bytes // store.count


@settings(max_examples=25)
@given(
    slots=st.integers(1, BLOCKS * COUNT + 2),
    ahead=st.booleans(),
    steps=st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 9), st.integers(0, 5)), max_size=12),
)
def test_any_budget_gives_the_same_bits(
    q4_0: Model, slots: int, ahead: bool, steps: list[tuple[int, int, int]]
) -> None:
    store, experts = stored(q4_0, slots, ahead=ahead)
    for block, count, seed in steps:
        x = rows(count, seed)
        assert np.array_equal(experts[block](x), q4_0.held[block](x))
    store.check()
    assert store.slots == min(slots, store.count)


def test_the_hot_stay_and_the_cold_make_room(q4_0: Model) -> None:
    store, experts = stored(q4_0, 6, ahead=False)
    hot, cold = rows(1, 1), rows(40, 2)
    for _ in range(8):
        experts[0](hot)
    before = store.state()
    for row in cold:
        experts[1](row[None])
        experts[0](hot)
    after = store.state()
    assert after.wanted - before.wanted == 40 * 6
    assert after.held - before.held >= 40 * 3, "the three hot ones were read again"


def test_all_that_fits_is_read_once(q4_0: Model) -> None:
    store, experts = stored(q4_0, 100)
    for _ in range(3):
        for block in experts:
            block(rows(64))
    state = store.state()
    assert state.read == store.count == BLOCKS * COUNT
    assert state.read_bytes >= q4_0.file.size - 4


def test_what_the_next_block_will_want_is_read_ahead(q4_0: Model) -> None:
    made = q4_0._replace(routers=[q4_0.routers[0]] * BLOCKS)  # then the guess is right
    store, experts = stored(made, 20)
    x = rows(1)
    experts[0](x)
    until = time.monotonic() + 20
    while store.state().read < 2 * CONFIG.used and time.monotonic() < until:
        time.sleep(0.001)
    experts[1](x)
    state = store.state()
    assert (state.wanted, state.held) == (2 * CONFIG.used, CONFIG.used)


@pytest.fixture
def own(tmp_path: Path) -> Model:
    return model(tmp_path, "Q8_0")


def test_a_file_that_was_cut_is_an_error_and_no_crash(own: Model) -> None:
    store, experts = stored(own, 4)
    os.truncate(own.file.path, 1000)
    experts[2](rows(9))
    with pytest.raises(CheckpointError, match=r"Q8_0.bin.* was (cut short|changed) while it was in use"):
        store.check()
    store.check()
    experts[2](rows(9))  # and again
    with pytest.raises(CheckpointError):
        store.check()


def test_a_file_that_was_written_into_is_an_error(own: Model) -> None:
    store, experts = stored(own, 4)
    experts[0](rows(1))
    store.check()
    with own.file.path.open("r+b") as file:
        file.write(b"HEAD")
    os.utime(own.file.path, ns=(1, 1))
    experts[0](rows(30))
    with pytest.raises(CheckpointError, match="was changed"):
        store.check()


@pytest.mark.parametrize("how", ["replaced", "renamed"])
def test_a_file_of_another_name_by_the_start_is_read_as_it_was(own: Model, how: str) -> None:
    """As when the last piece of a file with holes has come, and it gets its final name."""
    x, path = rows(9), own.file.path
    _, experts = stored(own, 4)
    want = experts[1](x)
    path.rename(path.with_suffix(".whole"))
    if how == "replaced":
        path.write_bytes(bytes(own.file.size))
    store, experts = stored(own, 4)
    assert np.array_equal(experts[1](x), want)
    store.check()


def test_a_budget_below_one_expert_is_refused(q4_0: Model) -> None:
    with pytest.raises(UsageError, match="one of which takes"):
        stored(q4_0, 0)


def test_what_must_be_decoded_or_is_a_copy_cannot_stay_in_the_file(q4_0: Model) -> None:
    raw = q4_0.tensors[0][0][0]
    for form in ("int8", "float32"):
        with pytest.raises(UnsupportedModelError, match="cannot stay in the file"):
            FileLinear([raw], None, [form], EXACT)
    copied = RawTensor(raw.name, raw.shape, raw.qtype, np.array(raw.stored))
    with pytest.raises(UnsupportedModelError, match="does not lie in the file"):
        FileLinear([copied], None, ["int4"], EXACT)
    shuffled = RawTensor(raw.name, raw.shape, raw.qtype, raw.stored, np.arange(INNER)[::-1])
    with pytest.raises(UnsupportedModelError, match="in order"):
        FileLinear([shuffled], None, ["int4"], EXACT)


def test_the_store_ends_with_its_owner(q4_0: Model) -> None:
    gc.collect()  # what other tests left
    threads = len(os.listdir("/proc/self/task"))
    descriptors = len(os.listdir("/proc/self/fd"))
    store, experts = stored(q4_0, 4)
    experts[0](rows(2))
    assert len(os.listdir("/proc/self/task")) == threads + READERS
    del store, experts
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
