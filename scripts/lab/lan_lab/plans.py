"""Every way to share out a model's blocks among a few machines, and the fastest of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations


@dataclass(frozen=True, slots=True)
class Able:
    """What a machine can do: ``decode_ms`` of one token for each block, at most ``max_blocks``."""

    decode_ms: float
    max_blocks: int


def token_ms(spans: Sequence[tuple[str, int]], machines: Mapping[str, Able], way_ms: float) -> float:
    """Of one decoded token: (machine, blocks) in order, and ``way_ms`` on each way between two."""
    return sum(blocks * machines[name].decode_ms for name, blocks in spans) + (len(spans) + 1) * way_ms


def fastest_route(
    spans: Mapping[str, tuple[int, int]], machines: Mapping[str, Able], n_blocks: int, way_ms: float
) -> list[tuple[str, int]]:
    """The cheapest chain over machines that serve ``spans`` (first block, end), entered and left anywhere.
    ValueError where they leave a hole."""
    found: list[tuple[float, list[tuple[str, int]]]] = []

    def extend(at: int, route: list[tuple[str, int]]) -> None:
        if at == n_blocks:
            found.append((token_ms(route, machines, way_ms), route))
        for name, (start, end) in spans.items():
            if start <= at < end and name not in [used for used, _ in route]:
                # Leaving early pays only where another machine's span begins.
                for leave in {end, *(other for other, _ in spans.values() if at < other < end)}:
                    extend(leave, [*route, (name, leave - at)])

    extend(0, [])
    if not found:
        raise ValueError("these spans leave a hole")
    return min(found)[1]


def every_plan(machines: Mapping[str, Able], n_blocks: int) -> Iterator[list[tuple[str, int]]]:
    """All chains of some of the machines whose spans fit them and cover the model."""
    for count in range(1, len(machines) + 1):
        for names in permutations(machines, count):
            for cuts in combinations(range(1, n_blocks), count - 1):
                sizes = [b - a for a, b in pairwise((0, *cuts, n_blocks))]
                spans = list(zip(names, sizes, strict=True))
                if all(size <= machines[name].max_blocks for name, size in spans):
                    yield spans


def best_plan(
    machines: Mapping[str, Able], n_blocks: int, way_ms: float
) -> tuple[float, list[tuple[str, int]], int]:
    """(milliseconds of a token, the plan, how many were tried). ValueError where none covers the model."""
    tried, best = 0, None
    for spans in every_plan(machines, n_blocks):
        tried += 1
        cost = token_ms(spans, machines, way_ms)
        if best is None or cost < best[0]:
            best = cost, spans
    if best is None:
        raise ValueError("these machines together cannot hold the model")
    return *best, tried
