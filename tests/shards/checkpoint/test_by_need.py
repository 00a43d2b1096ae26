"""A node of some blocks reads, and fetches, the bytes of these blocks and no others, in every format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from swarm_node.shards.checkpoint import hub_weights
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.checkpoint.stored import IncompleteError, StoredCheckpoint, open_stored
from swarm_node.shards.formats.files.mapped_file import AbsentError, MappedFile
from swarm_node.shards.formats.gguf.reader import is_gguf, open_gguf
from swarm_node.shards.formats.hf.safetensors_reader import open_directory
from swarm_node.shards.formats.tensors import needed_tensors
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.store import PieceStore
from swarm_node.swarm.types import Span
from tests.shards.checkpoint.fake_hub import NAME, serving
from tests.shards.families.cases import CASES, SMALL
from tests.shards.families.models import randomise
from tests.shards.formats.quantized import writers
from tests.shards.formats.quantized.writers import QUANTIZERS
from tests.shards.gguf_files import write_gguf_llama
from tests.shards.mlx import mlx_checkpoints

PIECE = 16 * 1024
BLOCKS, THIRD = 6, Span(2, 4)
FILES = ("gguf", "split gguf", "one file", "shards", "mlx", "gpt-oss")
PACKED = (
    *("gptq4-zeros", "gptq-mixed", "awq", "packed4-mixed", "packed8-zeros", "int8-zeros", "float8-group"),
    *("fp8", "fbgemm", "mxfp4", "nvfp4", "nf4-nested", "bnb8"),
)
"""A quantizer of each kind of tensors that make a matrix."""
Reads = list[tuple[Path, int, int]]


@pytest.fixture(scope="module", params=[*FILES, *PACKED])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hf_llama_in: Callable[..., Path]
) -> Path:
    """One of BLOCKS equal blocks, which are most of it."""
    wide = {"num_hidden_layers": BLOCKS, "hidden_size": 256, "intermediate_size": 512}
    folder = tmp_path_factory.mktemp("model")
    match request.param:
        case "gguf":
            return write_gguf_llama(folder, "Q4_0", blocks=BLOCKS)
        case "split gguf":
            return write_gguf_llama(folder, "Q4_0", blocks=BLOCKS, split=8)
        case "one file":
            return hf_llama_in(folder, **wide)
        case "shards":
            return hf_llama_in(folder, shards=4, **wide)
        case "mlx":
            return mlx_checkpoints.quantize_directory(hf_llama_in(folder, **wide), folder / "mlx")
        case "gpt-oss":
            return gpt_oss(folder)
    quantizer = QUANTIZERS[request.param]
    return writers.quantize_directory(hf_llama_in(folder, **wide), folder / "quantized", quantizer)[0]


def gpt_oss(folder: Path) -> Path:
    """Experts in MXFP4, as blocks and scales."""
    settings = {**SMALL, **CASES["gpt_oss-mxfp4"], "num_hidden_layers": BLOCKS}
    settings |= {"hidden_size": 128, "intermediate_size": 128, "num_local_experts": 8}
    config = transformers.AutoConfig.for_model("gpt_oss", **settings)
    randomise(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, cols, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (experts, rows, cols // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(121, 125, (experts, rows, cols // 32), np.uint8)
    save_file(tensors, folder / "model.safetensors")
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """File, offset and length of what is asked of mapped files from here on."""
    seen: Reads = []
    given = MappedFile.slice

    def noted(self: MappedFile, offset: int, length: int) -> np.ndarray:
        seen.append((self.path, offset, length))
        return given(self, offset, length)

    monkeypatch.setattr(MappedFile, "slice", noted)
    return seen


@dataclass
class Facts:
    """What the files say. ``heads``: their bytes, by path. ``tensors``: the place of each by its name.
    ``nbytes``: of all tensors; ``third``: of those of THIRD, which lie in ``runs`` without gaps."""

    heads: dict[Path, int]
    tensors: dict[str, tuple[Path, int, int]]
    nbytes: int
    third: int
    runs: int


@pytest.fixture(scope="module")
def facts(model: Path) -> Facts:
    files = open_gguf(model) if is_gguf(model) else open_directory(model)
    heads = {Path(file.where): file.head for file in files.files}
    tensors = {name: files.place(name) for name in files.manifest}
    files.close()
    inside = re.compile(rf"(blk|model\.layers)\.[{THIRD.start}-{THIRD.end - 1}]\..*")
    wanted = {place for name, place in tensors.items() if inside.fullmatch(name)}
    ends = {(path, offset + length) for path, offset, length in wanted}
    runs = sum((path, offset) not in ends for path, offset, _ in wanted)
    total = sum(length for _, _, length in tensors.values())
    return Facts(heads, tensors, total, sum(length for _, _, length in wanted), runs)


def test_opening_reads_headers_alone(model: Path, facts: Facts, reads: Reads) -> None:
    with open_checkpoint(str(model)) as checkpoint:
        assert checkpoint.config.n_blocks == BLOCKS
    assert is_gguf(model) or reads  # a GGUF header is parsed where it is mapped
    assert all(offset + length <= facts.heads[path] for path, offset, length in reads)


@pytest.mark.parametrize("device", ["cpu", "mlx"])
def test_loading_some_blocks_reads_their_tensors_alone(
    model: Path, facts: Facts, reads: Reads, device: str
) -> None:
    pytest.importorskip("mlx.core")
    with open_checkpoint(str(model)) as checkpoint:
        reads.clear()
        load_backend(checkpoint, THIRD, LoadOptions(device=device))
    assert set(reads) <= set(facts.tensors.values())  # whole tensors, and nothing between them
    read = sum(length for _, _, length in set(reads))
    assert 0.999 * facts.third < read <= facts.third  # scales of activations are not read
    assert 0.25 < facts.third / facts.nbytes < 0.34


def test_the_hub_is_asked_for_their_pieces_alone(
    model: Path, facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_weights, "_SMALL_FILE", 0)
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    repo = model if model.is_dir() else model.parent
    with serving(repo, tmp_path / "cache", monkeypatch) as hub:
        with open_checkpoint(NAME, blocks=THIRD) as checkpoint, open_checkpoint(str(model)) as local:
            assert checkpoint.identity == local.identity
            load_backend(checkpoint, THIRD, LoadOptions())
        sent = hub.bytes_of(".gguf") + hub.bytes_of(".safetensors")
        ends = 2 * PIECE * (facts.runs + len(facts.heads))
        # Of a file of which nine tenths are needed all is taken.
        assert facts.third < sent < facts.third / 0.9 + 4 * sum(facts.heads.values()) + ends


def filled(folder: Path, model: Path, blocks: Span | None, client: bool) -> PieceStore:
    """A store with what a node of ``blocks`` or a client fetches, piece by piece."""
    manifest, files = manifest_of(model, piece_size=PIECE), model_files(model)
    with open_checkpoint(str(model)) as checkpoint:
        ref = checkpoint.ref
    store = PieceCache(folder).open(manifest, ref)
    for _ in range(9):
        try:
            open_stored(store.folder, blocks, client).close()
            return store
        except IncompleteError as lacking:
            for piece in lacking.pieces:
                place = manifest.place(piece)
                with files[place.file.name].open("rb") as file:
                    file.seek(place.offset)
                    assert store.add(piece, file.read(place.length))
            store.flush()
    raise AssertionError("it is never enough")


@pytest.fixture
def third(model: Path, tmp_path: Path) -> Iterator[tuple[PieceStore, StoredCheckpoint]]:
    with (
        filled(tmp_path / "third", model, THIRD, False) as store,
        open_stored(store.folder, THIRD) as checkpoint,
    ):
        yield store, checkpoint


def test_a_third_of_the_blocks_is_a_third_of_the_bytes(
    model: Path, facts: Facts, third: tuple[PieceStore, StoredCheckpoint]
) -> None:
    store, checkpoint = third
    small = sum(file.size for file in store.manifest.files if file.head == file.size)
    heads = sum(facts.heads.values()) + PIECE * len(facts.heads)
    assert store.bytes_held < facts.third + small + heads + 2 * PIECE * facts.runs
    load_backend(checkpoint, THIRD, LoadOptions())
    with open_checkpoint(str(model)) as right:
        for name in needed_tensors(right.config, THIRD, client=False):
            if right.has(name):
                ours, theirs = checkpoint.tensor(name), right.tensor(name)
                assert np.array_equal(ours.dequantize(), theirs.dequantize())
        for name in needed_tensors(right.config, Span(0, 1), client=False):
            if right.has(name) and right.manifest[name].nbytes > 4 * PIECE:
                with pytest.raises(AbsentError):
                    checkpoint.tensor(name)


def test_a_client_takes_its_part(model: Path, tmp_path: Path) -> None:
    with filled(tmp_path / "client", model, None, True) as store, open_stored(store.folder, None, True) as it:
        for name in needed_tensors(it.config, None, client=True):
            if it.has(name):
                it.tensor(name).dequantize()
        assert store.bytes_held < 0.3 * store.manifest.total_bytes
