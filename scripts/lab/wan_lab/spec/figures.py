"""From single answers to what is reported: ratios of neighbours, medians, the bound, and what is wrong."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .bound import Stages, least_s
from .cases import Arm, Case

Run = dict[str, Any]
"""What ``client.told`` gives."""


def speed(run: Run) -> float:
    """Tokens a second after the first one."""
    return (run["tokens"] - 1) / run["decode_s"] if run["decode_s"] > 0 else 0.0


def ratios(plain: Sequence[Run], runs: Sequence[Run]) -> list[float]:
    """Times plain decoding, of each run and of the plain one of the same round."""
    return [speed(run) / speed(beside) for run, beside in zip(runs, plain, strict=True)]


def hop_rows_s(runs: Iterable[Run]) -> tuple[float, ...]:
    """Of each hop, the least time a row that any of the answers saw: full steps cost the least a row."""
    found = [
        [seconds / rows for seconds, rows in zip(run["compute_s"], run["rows"], strict=True)]
        for run in runs
        if all(run["rows"])
    ]
    return tuple(min(times) for times in zip(*found, strict=True))


def stages(runs: Sequence[Run], line_s: float, cores: int) -> Stages:
    """What one row takes, by all answers of one condition."""
    client_s = min(run["local_s"] / run["tokens"] for run in runs)
    return Stages(hop_rows_s(runs), client_s, line_s, cores)


def case_figures(
    case: Case, plain: Sequence[Run], runs: dict[str, list[Run]], row_s: float
) -> dict[str, Any]:
    """``runs``: of each arm by its name, as many as of ``plain``."""
    trip_s = statistics.median(run["decode_s"] / (run["tokens"] - 1) for run in plain)
    everything = [*plain, *(run for each in runs.values() for run in each)]
    arms = [_arm_figures(arm, plain, runs[arm.name], trip_s, row_s) for arm in case.arms]
    return {
        "part": case.part,
        "name": case.name,
        "tokens": plain[0]["tokens"],
        "plain_tokens_per_s": statistics.median(map(speed, plain)),
        "trip_s": trip_s,
        "row_s": row_s,
        "identical": len({tuple(run["token_ids"]) for run in everything}) == 1,
        "repairs": sum(run["repairs"] for run in everything),
        "arms": arms,
        "plain_runs": [_brief(run) for run in plain],
    }


def _arm_figures(
    arm: Arm, plain: Sequence[Run], runs: Sequence[Run], trip_s: float, row_s: float
) -> dict[str, Any]:
    each = ratios(plain, runs)
    middle = statistics.median(run["decode_s"] for run in runs)
    told = [run["speculation"] for run in runs]
    found = {
        "name": arm.name,
        "tokens_per_s": statistics.median(map(speed, runs)),
        "times": statistics.median(each),
        "ratios": each,
        "trips": statistics.median(one["passes"] for one in told),
        "drafted": statistics.median(one["drafted"] for one in told),
        "accepted": statistics.median(one["accepted"] for one in told),
        "void_rows": statistics.median(one["drafted"] - one["accepted"] for one in told),
        "rows_computed": statistics.median(max(run["rows"]) for run in runs),
        "rows_a_step": statistics.median(max(run["rows"]) / max(1, *run["steps"]) for run in runs),
        "goal": arm.goal,
        "reached": not arm.goal or statistics.median(each) >= arm.goal,
        "law": arm.law if arm.law != float("inf") else None,
        "runs": [_brief(run) for run in runs],
    }
    tokens = runs[0]["tokens"]
    if (trips := arm.least_trips(tokens)) is not None:
        bound_s = least_s(tokens, trips, trip_s, row_s)
        found |= {
            "least_trips": trips,
            "bound_s": bound_s,
            "bound_times": (tokens - 1) * trip_s / bound_s,
            "share": bound_s / middle,
        }
    return found


def _brief(run: Run) -> Run:
    return {name: value for name, value in run.items() if name != "token_ids"}


def problems(results: Iterable[dict[str, Any]]) -> list[str]:
    """What is wrong, in sentences: an answer that is not the plain one."""
    return [
        f"{found['name']}{_where(found)}: an answer is not the plain one"
        for found in results
        if not found["identical"]
    ]


def _where(found: dict[str, Any]) -> str:
    return f" at {found['rate_name']}" if "rate_name" in found else ""


# A hundred prompts.


def harmless_figures(pairs: Sequence[dict[str, Any]], least: float) -> dict[str, Any]:
    """``pairs``: of each prompt its ``kind``, its ``name`` and ``rounds``, each of a plain run, a speculating
    one and a plain one: the ratio of the plain ones says how much is noise. ``least``: what no prompt should
    be below."""
    runs = [run for pair in pairs for one in pair["rounds"] for run in one]
    row_s = sum(hop_rows_s(runs)) + min(run["local_s"] / run["tokens"] for run in runs)
    found = [_pair_figures(pair, row_s) for pair in pairs]
    times = sorted(each["times"] for each in found)
    noise = sorted(each["noise"] for each in found)
    kinds: dict[str, list[float]] = {}
    for each in found:
        kinds.setdefault(each["kind"], []).append(each["times"])
    return {
        "prompts": len(found),
        "least": times[0],
        "tenth": times[len(times) // 10],
        "median": statistics.median(times),
        "below": sum(each < least for each in times),
        "trip_s": statistics.median(each["trip_s"] for each in found),
        "row_s": row_s,
        "counted_least": min(each["counted"] for each in found),
        "counted_below": sum(each["counted"] < least for each in found),
        "noise_least": noise[0],
        "noise_tenth": noise[len(noise) // 10],
        "noise_below": sum(each < least for each in noise),
        "more_trips": sum(each["trips"] > each["tokens"] - 1 for each in found),
        "void_rows": sum(each["drafted"] - each["accepted"] for each in found),
        "tokens": sum(each["tokens"] for each in found),
        "kinds": {
            kind: {"least": min(all_), "median": statistics.median(all_)} for kind, all_ in kinds.items()
        },
        "identical": all(each["identical"] for each in found),
        "each": found,
    }


def _pair_figures(pair: dict[str, Any], row_s: float) -> dict[str, Any]:
    """Of several rounds, the median. ``counted``: times plain decoding as trips and rows alone would have it,
    on a machine without noise: each row beyond one a trip costs ``row_s``, all stages one after the other."""
    rounds = pair["rounds"]
    times, noise = [], []
    for before, speculating, after in rounds:
        plain = 2 * (before["tokens"] - 1) / (before["decode_s"] + after["decode_s"])
        times.append(speed(speculating) / plain)
        noise.append(speed(after) / speed(before))
    told = [speculating["speculation"] for _, speculating, _ in rounds]
    trips = statistics.median(one["passes"] for one in told)
    rows = statistics.median(max(speculating["rows"]) for _, speculating, _ in rounds)
    steps = rounds[0][0]["tokens"] - 1
    trip_s = statistics.median(run["decode_s"] / steps for one in rounds for run in (one[0], one[2]))
    return {
        "kind": pair["kind"],
        "name": pair["name"],
        "rounds": len(rounds),
        "tokens": rounds[0][0]["tokens"],
        "plain_tokens_per_s": statistics.median(speed(before) for before, _, _ in rounds),
        "times": statistics.median(times),
        "first_times": times[0],
        "noise": statistics.median(noise),
        "trip_s": trip_s,
        "trips": trips,
        "rows": rows,
        "counted": steps * trip_s / (trips * trip_s + max(0, rows - trips) * row_s),
        "drafted": statistics.median(one["drafted"] for one in told),
        "accepted": statistics.median(one["accepted"] for one in told),
        "identical": len({tuple(run["token_ids"]) for one in rounds for run in one}) == 1,
    }
