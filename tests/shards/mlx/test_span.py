"""The MLX backend on MLX's CPU build, against the torch path: same weights, same rows, in float32."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.layers.kv_pool import KV_DTYPES, BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models import devices
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import LocalProtocolError, UsageError
from swarm_node.swarm.types import Span
from tests.shards.mlx.mlx_cases import CLOSE, MLX, Pair, agree, both

SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "one head each": {"num_key_value_heads": 4},
    "one KV head, wide heads": {"num_key_value_heads": 1, "head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "dynamic rope": {"max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3 rope": {
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "yarn rope": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    },
}

T = TypeVar("T")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: Any) -> Callable[[str], Pair]:
    loaded: dict[str, Pair] = {}

    def load(shape: str = "grouped heads") -> Pair:
        if shape not in loaded:
            folder = tmp_path_factory.mktemp("model")
            directory = hf_llama_in(folder, scale=lambda cols: cols**-0.5, **SHAPES[shape])
            loaded[shape] = both(directory)
        return loaded[shape]

    return load


@pytest.mark.parametrize("shape", SHAPES)
def test_ragged_batches_agree(pairs: Any, sessions: Any, shape: str) -> None:
    agree(sessions, pairs(shape))


@pytest.mark.parametrize("kv_dtype", [name for name in KV_DTYPES if name != "float32"])
def test_kv_types_round_alike(pairs: Any, sessions: Any, kv_dtype: str) -> None:
    agree(sessions, pairs(), {"atol": 2e-3, "rtol": 2e-3}, kv_dtype=kv_dtype)


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_any_batches_rollbacks_and_forks(data: st.DataObject, pairs: Any, sessions: Any) -> None:
    both_of = [sessions(model, 3, 128) for model in pairs()]
    seed = 0
    for _ in range(data.draw(st.integers(1, 5))):
        order = data.draw(st.permutations(range(3)))
        feed = []
        for session in order[: data.draw(st.integers(1, 3))]:
            back = data.draw(st.integers(0, min(40, both_of[0].lengths[session])))
            room = 128 - both_of[0].lengths[session] + back
            if not room:
                continue
            count = min(room, data.draw(st.sampled_from([1, 1, 1, 2, 5, 31, 33])))
            for held in both_of:
                held.lengths[session] -= back
            feed.append((session, count))
        if not feed:
            continue
        seed += 1
        x = torch.randn((sum(count for _, count in feed), 64), generator=torch.Generator().manual_seed(seed))
        wanted, got = (held.forward(x, feed).clone() for held in both_of)
        torch.testing.assert_close(got, wanted, **CLOSE)
        source, target = order[0], order[-1]
        if source != target and data.draw(st.booleans()):  # the target becomes a copy of the source
            for held in both_of:
                held.pool.copy_slots(
                    held.tables[source].ravel().tolist(), held.tables[target].ravel().tolist()
                )
                held.lengths[target] = held.lengths[source]


def test_part_of_the_span(pairs: Any, sessions: Any) -> None:
    x = torch.randn((9, 64), generator=torch.Generator().manual_seed(2))
    for span in (Span(0, 1), Span(1, 3), Span(3, 4)):
        wanted, got = (sessions(model).forward(x, span=span) for model in pairs())
        torch.testing.assert_close(got, wanted, **CLOSE)
    model = pairs()[1]
    with pytest.raises(UsageError, match="not within"):
        sessions(model).forward(x, span=Span(3, 5))


def test_the_input_is_left_alone(pairs: Any, sessions: Any) -> None:
    x = torch.randn((3, 64), generator=torch.Generator().manual_seed(2))
    before = x.clone()
    sessions(pairs()[1], 3).forward(x, [(0, 1), (2, 1), (1, 1)])
    assert torch.equal(x, before)


# Memory.


def test_what_is_not_finite_stays_its_sessions_own(pairs: Any, sessions: Any) -> None:
    """Pages that held such rows are used again, behind a mask, by others."""
    torch_model, model = pairs()
    held, alone = sessions(model, 3, 64), sessions(torch_model, 3, 64)
    bad = torch.full((33, 64), float("nan"))
    assert not torch.isfinite(held.forward(bad, [(0, 33)])).any()
    good = torch.randn((4, 64), generator=torch.Generator().manual_seed(4))
    held.lengths[0] = 0
    for feed in ([(0, 1), (1, 1)], [(1, 1), (0, 1)]):
        wanted, got = (sessions_.forward(good[:2], feed).clone() for sessions_ in (alone, held))
        torch.testing.assert_close(got, wanted, **CLOSE)


def test_large_values_saturate(pairs: Any) -> None:
    pool = pairs()[1].new_pool(1, "float16")
    rows = mx.array([[[1e9, -1e9, 2.0, float("inf")] * 4]] * 4)
    assert np.array(pool.narrow(rows)[0]).ravel()[:4].tolist() == [65504.0, -65504.0, 2.0, 65504.0]


def test_copies_of_pages(pairs: Any) -> None:
    model = pairs()[1]
    shape = model.config.blocks[0].attention.kv
    for kv_dtype in KV_DTYPES:
        pool = model.new_pool(6, kv_dtype)
        cells = pool._cells.shape
        pool._cells[:] = np.random.default_rng(0).integers(0, 100, cells)
        if pool._scale_cells is not None:
            pool._scale_cells[:] = np.random.default_rng(1).random(cells[:3])
        before = np.array(pool.gather(mx.arange(6), shape, mx.float32))
        pool.copy_slots([1, 4], [0, 2])
        after = np.array(pool.gather(mx.arange(6), shape, mx.float32))
        assert np.array_equal(after, before[:, [1, 1, 4, 3, 4, 5]])
        with pytest.raises(ValueError, match="2 sources, 1 targets"):
            pool.copy_slots([1, 4], [0])


def test_a_failed_pass_writes_nothing(pairs: Any, sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pairs()[1]
    held = sessions(model, 1, 64)
    x = torch.randn((5, 64), generator=torch.Generator().manual_seed(4))
    held.forward(x)
    before = held.pool._cells.copy()
    last = type(model._blocks[-1])
    monkeypatch.setattr(last, "__call__", lambda self, *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        held.forward(x)
    assert np.array_equal(held.pool._cells, before)


def test_slices_that_do_not_fit_the_batch(pairs: Any, sessions: Any) -> None:
    model = pairs()[1]
    held = sessions(model)
    with pytest.raises(LocalProtocolError, match="other rows"):
        held.forward(torch.zeros(3, 64), [(0, 2)])
    part = BatchSlice(held.tables[0][1:], 1, 0, 0, 2)
    with pytest.raises(LocalProtocolError, match="does not hold"):
        model.forward(np.zeros((2, 64), np.float32), [part], held.pool)


def in_thread(function: Callable[[], T]) -> T:
    """``function``'s result from a thread of its own."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_threads_take_turns(wide: Path, sessions: Any) -> None:
    """MLX's arrays belong to a thread until they are evaluated: a node loads, makes the memory and computes
    in three of them."""
    model = in_thread(lambda: both(wide, Span(0, 2)))
    held = in_thread(lambda: sessions(model[1]))
    x = torch.randn((5, 128), generator=torch.Generator().manual_seed(4))
    first = in_thread(lambda: held.forward(x).clone())
    second = held.forward(x[:1]).clone()
    alone = sessions(model[0])
    torch.testing.assert_close(first, alone.forward(x), **CLOSE)
    torch.testing.assert_close(second, alone.forward(x[:1]), **CLOSE)


def test_two_spans_compute_at_the_same_time(wide: Path, sessions: Any) -> None:
    torch_model, model = both(wide, Span(0, 2))
    x = torch.randn((40, 128), generator=torch.Generator().manual_seed(4))
    wanted = sessions(torch_model).forward(x)
    results: list[torch.Tensor] = []
    helds = [sessions(model) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda held=held: results.append(held.forward(x).clone())) for held in helds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        torch.testing.assert_close(result, wanted, **CLOSE)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [({"deterministic": True}, "deterministic"), ({"kernels": "native"}, "kernels native")],
)
def test_what_mlx_cannot_do_is_refused(wide: Path, options: dict[str, Any], message: str) -> None:
    with open_checkpoint(str(wide)) as checkpoint, pytest.raises(UsageError, match=message):
        load_backend(checkpoint, Span(0, 2), LoadOptions(device="mlx", **options))


def test_without_mlx_the_extra_is_named(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    monkeypatch.setattr(devices, "has_mlx", lambda: False)
    with open_checkpoint(str(wide)) as checkpoint, pytest.raises(UsageError) as caught:
        load_backend(checkpoint, Span(0, 2), MLX)
    assert '".[mlx]"' in caught.value.hint


def test_progress_and_bytes(wide: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    with open_checkpoint(str(wide)) as checkpoint:
        model = load_backend(checkpoint, Span(1, 2), MLX, lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] == model.weight_bytes
    assert {label for _, _, label in calls} == {"block 1"}
    assert (model.kernels, model.mixes) == ("mlx cpu", False)


def test_an_unloaded_span_leaves_no_memory_behind(wide: Path, sessions: Any) -> None:
    gc.collect()
    before = mx.get_active_memory()
    held = sessions(both(wide, Span(0, 2))[1])
    held.forward(torch.zeros(40, 128))
    weights, memory = held.model.weight_bytes, held.pool.data.nbytes
    assert mx.get_active_memory() - before >= weights + memory
    del held
    gc.collect()
    assert mx.get_active_memory() - before < memory // 10
