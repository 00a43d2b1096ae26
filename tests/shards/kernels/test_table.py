"""Choices from figures, and a cache that can only cost time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from swarm_node.shards.kernels import bench
from swarm_node.shards.kernels import table as kernel_table
from swarm_node.shards.kernels.bench import NATIVE_WAYS, ROWS, TORCH_WAYS
from swarm_node.shards.kernels.table import KernelTable
from swarm_node.swarm.runtime.c_build import NativeUnavailableError

PLAIN = dict.fromkeys(TORCH_WAYS + NATIVE_WAYS, (1e-4, 4e-4, 2e-3))


def table(changes: Mapping[str, tuple[float, ...]] | None = None) -> KernelTable:
    return KernelTable({**PLAIN, **(changes or {})})


def test_native_pays_unless_it_is_clearly_slower() -> None:
    for form in ("float32", "float16", "bfloat16", "int8", "int4"):
        assert table().native_pays(form, "close")
    assert table({"native int4 close": (1.4e-4, 5.6e-4, 2.8e-3)}).native_pays("int4", "close")
    slow = table({"native int4 close": (1.6e-4, 6.4e-4, 3.2e-3)})
    assert not slow.native_pays("int4", "close")
    assert slow.native_pays("int4", "exact")


def test_prompts_count() -> None:
    """A CPU with matrix units for bfloat16: as fast for one row, ten times as fast for many."""
    amx = {"torch bfloat16": (1e-4, 1e-4, 2e-4)}
    assert not table(amx).native_pays("bfloat16", "close")
    assert table(amx).wide_bf16
    assert not table().wide_bf16


def test_torch_kernels_without_vector_code() -> None:
    assert table().torch_int4_pays
    assert table().torch_bf16_pays
    slow = table({"torch int4": (1e-3, 8e-3, 6e-2), "torch bfloat16": (1e-3, 8e-3, 6e-2)})
    assert not slow.torch_int4_pays
    assert not slow.torch_bf16_pays


def test_without_the_library_only_torch_is_left() -> None:
    bare = KernelTable({way: PLAIN[way] for way in TORCH_WAYS})
    assert not bare.native
    assert not bare.native_pays("int4", "close")
    assert bare.torch_int4_pays


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kernel_table, "cache_home", lambda: tmp_path)
    return tmp_path / "kernels"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Each measurement made (with native kernels?); the first gives 1e-4 s, the next 2e-4 and so on."""
    calls: list[bool] = []

    def fake(native: bool) -> dict[str, tuple[float, ...]]:
        calls.append(native)
        ways = TORCH_WAYS + NATIVE_WAYS if native else TORCH_WAYS
        return {way: (len(calls) * 1e-4,) * len(ROWS) for way in ways}

    monkeypatch.setattr(kernel_table, "measure", fake)
    return calls


def start(kernels: str = "lib.so") -> KernelTable:
    """A new process's look at the table."""
    kernel_table._table.cache_clear()
    try:
        return kernel_table._table(kernels)
    finally:
        kernel_table._table.cache_clear()


def test_measured_once_a_machine(cache: Path, measured: list[bool]) -> None:
    first = start()
    assert start() == first
    assert measured == [True]


def test_other_kernels_torch_or_cpu_are_measured_anew(
    cache: Path, measured: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    assert not start("").native
    start("other.so")
    monkeypatch.setattr(kernel_table, "cpu_identity", lambda: "another CPU")
    start()
    monkeypatch.setattr(kernel_table, "version", lambda package: "99")
    start()
    assert measured == [True, False, True, True, True]
    assert len(list(cache.iterdir())) == 5


def damage(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPOILED: dict[str, Any] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "nested": lambda file: file.write_bytes(b"[" * 10000),
    "huge": lambda file: file.write_bytes(b" " * 20000 + file.read_bytes()),
    "a list": lambda file: file.write_text("[1, 2]"),
    "another machine's": lambda file: damage(file, key="0" * 32),
    "no figures": lambda file: damage(file, seconds={}),
    "text": lambda file: damage(file, seconds="fast"),
    "not numbers": lambda file: damage(file, seconds=dict.fromkeys(PLAIN, ["1"] * 3)),
    "negative": lambda file: damage(file, seconds=dict.fromkeys(PLAIN, [-1e-4] * 3)),
    "zero": lambda file: damage(file, seconds=dict.fromkeys(PLAIN, [0.0] * 3)),
    "not finite": lambda file: damage(file, seconds=dict.fromkeys(PLAIN, [float("nan")] * 3)),
    "too few": lambda file: damage(file, seconds=dict.fromkeys(PLAIN, [1e-4] * 2)),
    "not lists": lambda file: damage(file, seconds=dict.fromkeys(PLAIN, 1e-4)),
    "other ways": lambda file: damage(file, seconds={**PLAIN, "gpu": [1e-4] * 3}),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_cache_is_ignored_and_replaced(cache: Path, measured: list[bool], how: str) -> None:
    start()
    (file,) = cache.iterdir()
    SPOILED[how](file)
    again = start()
    assert again.seconds["torch float32"][0] == pytest.approx(2e-4)
    assert start() == again
    assert len(measured) == 2
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_costs_a_measurement(
    tmp_path: Path, measured: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(kernel_table, "cache_home", lambda: blocked)
    assert start() == KernelTable({way: (1e-4,) * len(ROWS) for way in TORCH_WAYS + NATIVE_WAYS})
    start()
    assert len(measured) == 2


def test_no_compiler_means_torch_only(
    cache: Path, measured: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise NativeUnavailableError("no C compiler found")

    monkeypatch.setattr(kernel_table, "library", refuse)
    kernel_table._table.cache_clear()
    assert not kernel_table.kernel_table().native
    assert measured == [False]
    kernel_table._table.cache_clear()


FAILURES = {
    "no such module": ("swarm_node.shards.torch.none", 60.0),
    "no figures": ("platform", 60.0),
    "too slow": ("swarm_node.shards.torch.bench", 0.001),
}


@pytest.mark.parametrize("how", FAILURES)
def test_where_the_measurement_fails_ours_are_chosen_and_nothing_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    module, seconds = FAILURES[how]
    monkeypatch.setattr(kernel_table, "_BENCH", module)
    monkeypatch.setattr(kernel_table, "_BENCH_S", seconds)
    assert start().native_pays("int4", "close")
    assert start("").torch_int4_pays
    assert not cache.exists()


def test_without_torch_nothing_is_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(kernel_table, "version", missing)
    assert kernel_table.measure(native=True) is None
    assert start().native_pays("bfloat16", "exact")


def test_figures_that_are_kept_are_at_hand(cache: Path, measured: list[bool]) -> None:
    assert not kernel_table.is_ready()
    kernel_table._table.cache_clear()
    kernel_table.kernel_table()
    kernel_table._table.cache_clear()
    assert kernel_table.is_ready()


@pytest.mark.parametrize("native", [False, True])
def test_the_measurement_has_every_way(native: bool) -> None:
    if native and not kernel_table.kernel_table().native:
        pytest.skip("no native kernels on this machine")
    seconds = kernel_table.measure(native)
    assert isinstance(seconds, dict)
    assert tuple(seconds) == TORCH_WAYS + (NATIVE_WAYS if native else ())
    assert all(len(times) == len(ROWS) and min(times) > 0 for times in seconds.values())


def test_slow_ways_are_not_measured_with_many_rows() -> None:
    rows_seen: list[int] = []
    clock = [0.0]

    def product(x: Any) -> Any:
        rows_seen.append(len(x))
        clock[0] += 0.003 * len(x)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.time, "perf_counter", lambda: clock[0])
        assert bench.times(product) == pytest.approx((0.003, 0.024, 0.192))
    assert set(rows_seen) == {1}
