"""The table of what speculation brings on simulated routes, beside what the law allows."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

from .simulated import (
    FAST_HOPS,
    NEAR,
    SLOW_LINES,
    USUAL_HOPS,
    PositionGuesses,
    Simulated,
    SimulatedRoute,
    changing,
    copy,
    misleading,
    new_text,
    simulate,
)

ROUTES = {
    "3.1 + 0.4 ms a row": USUAL_HOPS,
    "10 + 0.05 ms a row": FAST_HOPS,
    "20 Mbit/s, rows of 4 KiB": SLOW_LINES,
    "at home": NEAR,
}
MEANT = tuple(ROUTES)[:2]
"""The routes that goals are for."""
SEEDS = 4
AGREEMENT = 0.74


def _known(seed: int, route: SimulatedRoute) -> Simulated:
    text = new_text(300, seed)
    return simulate(*text, route, PositionGuesses(text[1], AGREEMENT, AGREEMENT, seed=seed))


def _wrong(seed: int, route: SimulatedRoute) -> Simulated:
    text = new_text(64, seed)
    return simulate(*text, route, PositionGuesses(text[1], 0.0, 0.95), seed=seed)


CASES: dict[str, tuple[float, Callable[[int, SimulatedRoute], Simulated]]] = {
    "copy of 200 tokens": (30.0, lambda seed, route: simulate(*copy(200, seed=seed), route)),
    "copy of 400, a word replaced every 30": (
        18.0,
        lambda seed, route: simulate(*copy(400, 30, seed), route),
    ),
    "new text, guesses right 74 %": (3.5, _known),
    "guesses always wrong, and sure": (0.97, _wrong),
    "few words, which mislead": (0.97, lambda seed, route: simulate(*misleading(64, seed), route)),
    "copies and new text in turns": (0.97, lambda seed, route: simulate(*changing(96, seed), route)),
}
"""What each is to reach on the routes MEANT, and one answer of it."""


def simulated() -> dict[str, Any]:
    """Each case on each route: times plain decoding on average and at least, and counts on average."""
    rows: list[dict[str, Any]] = []
    for name, (to_reach, case) in CASES.items():
        for route_name, route in ROUTES.items():
            made = [case(seed, route) for seed in range(SEEDS)]
            counts = [each.speculated for each in made]
            rows.append(
                {
                    "name": name,
                    "route": route_name,
                    "to_reach": to_reach,
                    "times": mean(each.times for each in made),
                    "least": min(each.times for each in made),
                    "bound": mean(each.speculated.most_per_trip(each.tokens) for each in made),
                    "passes": mean(told.passes for told in counts),
                    "drafted": mean(told.drafted for told in counts),
                    "accepted": mean(told.accepted for told in counts),
                }
            )
    return {"simulated": rows}


def reaches(report: dict[str, Any]) -> bool:
    """Whether all is reached on the routes that it is to be reached on."""
    return all(row["times"] >= row["to_reach"] for row in report["simulated"] if row["route"] in MEANT)


def show_simulated(report: dict[str, Any]) -> None:
    print(
        "Times plain decoding, over the seeds on average and at least; and what the client says that misses\n"
        "allow at most, by the times that it knows at the end.\n"
    )
    print(
        "| answer | route | to reach | times plain | least | client: at most | passes | drafted | accepted |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in report["simulated"]:
        counts = (f"{row[name]:.0f}" for name in ("passes", "drafted", "accepted"))
        to_reach = f"{row['to_reach']:.2f}" if row["route"] in MEANT else ""
        figures = (f"{row[name]:.2f}" for name in ("times", "least", "bound"))
        print("| " + " | ".join([row["name"], row["route"], to_reach, *figures, *counts]) + " |")
