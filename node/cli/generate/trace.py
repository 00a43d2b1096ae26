"""``swarm-node generate --trace``: what a route should have cost beside what it did, stage by stage.

Works on the plain dictionaries of ``Generation.as_dict``, so that it reads a saved ``--json`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ....client.hops.trace import DEPTHS_TOLD
from ....swarm.types import short_peer_id
from ..shared.fitted_table import FittedTable

MATTERS = 1.5
"""Prediction and measurement disagree when one is this many times the other, and ..."""
LEAST_MS = 2.0
"""... they are so far apart, and ..."""
LEAST_PART = 0.2
"""... that is such a part of the whole."""
PEERS_TOLD = 3
"""At most this many of the peers that were passed over are named."""
SECOND = " second"
SOURCES = {
    "text": "the text",
    "resume": "a copy behind a replaced word",
    "model": "the draft model",
    "next": "the model's own block",
    "guide": "the schema",
}
"""What people call the kinds of guesses."""
BAR = 12
"""The waterfall's bars have this many characters."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a decode pass, milliseconds. ``predicted_ms`` None: nothing was predicted of it.

    A hop's stage has ``peer_id``, ``blocks`` and its measured parts.
    """

    name: str
    predicted_ms: float | None
    measured_ms: float
    peer_id: str = ""
    blocks: str = ""
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    codec_ms: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """The stages of a decode pass, none where there was none; tokens fed and gained by a pass on average; the
    prefill in seconds (None: no prediction for it); and sentences on where prediction and measurement
    disagree. A pass is one token, or several where a draft was checked: then nothing was predicted of it.
    ``passed_over``: a sentence on peers that were tried in vain; "" where there were none. ``ways``: a line
    on how each edge's streams go; "" where nobody said. ``codecs``: a line on how activations are written on
    each edge. ``guesses``: a line for each source of guesses, how often it was right."""

    stages: tuple[Stage, ...]
    fed_per_pass: float
    gained_per_pass: float
    prefill_tokens: int
    prefill_predicted_s: float | None
    prefill_measured_s: float
    disagreements: tuple[str, ...]
    passed_over: str = ""
    ways: str = ""
    codecs: str = ""
    guesses: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON, under ``trace``."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "fed_per_pass": round(self.fed_per_pass, 4),
            "gained_per_pass": round(self.gained_per_pass, 4),
            "prefill_tokens": self.prefill_tokens,
            "prefill_predicted_s": self.prefill_predicted_s,
            "prefill_measured_s": self.prefill_measured_s,
            "disagreements": list(self.disagreements),
            "passed_over": self.passed_over,
            "ways": self.ways,
            "codecs": self.codecs,
            "guesses": list(self.guesses),
        }


def trace_of(result: dict[str, Any]) -> Trace:
    """``result``: ``Generation.as_dict()``."""
    predicted = result.get("predicted")
    hops, timings = result["route"], result["timings"]
    if predicted is not None and [_place(hop) for hop in predicted["hops"]] != [_place(hop) for hop in hops]:
        predicted = None  # of another route: hops were replaced since
    drafts = result.get("speculation") or {}
    passes = max(1, drafts.get("passes", timings["new_tokens"] - 1))
    fed_per_pass = 1 + drafts.get("drafted", 0) / passes
    stages = (
        _stages(result, predicted, passes, fed_per_pass)
        if timings["new_tokens"] > 1 and hops[0]["decode"]["tokens"]
        else ()
    )
    fed = timings["prompt_tokens"] - timings["cached_tokens"]
    measured_s = max(0.0, timings["prefill_s"] - timings["repair_s"])
    predicted_s = None
    if predicted is not None and not timings["repair_s"] and predicted["prompt_tokens"]:
        # What peers held already was not fed; the rest costs its part.
        predicted_s = predicted["prefill_ms"] / 1000 * min(1.0, fed / predicted["prompt_tokens"])
    says = _disagreements(stages)
    if predicted_s is not None and _differ(predicted_s * 1000, measured_s * 1000, measured_s * 1000):
        says.append(f"The prefill took {measured_s:.2f} s; the prediction was {predicted_s:.2f} s.")
    gained_per_pass = (timings["new_tokens"] - 1) / passes
    return Trace(
        tuple(stages),
        fed_per_pass,
        gained_per_pass,
        fed,
        predicted_s,
        measured_s,
        tuple(says),
        _passed_over(result.get("passed_over") or {}),
        _ways(hops),
        _codecs(hops),
        _guesses(drafts),
    )


def _stages(result: dict[str, Any], predicted: dict[str, Any] | None, passes: int, fed: float) -> list[Stage]:
    """The stages in the order in which a pass of ``fed`` tokens goes through them, as far as that was
    measured: a chain's ways are one sum."""
    hops = {_place(hop): hop for hop in result["route"]}
    order = [hop["peer_id"] for hop in result["route"]]
    expected = {} if predicted is None else {_place(hop): hop for hop in predicted["hops"]}
    stages: list[Stage] = []
    chains = _chains_of(order, result.get("chains", ()))
    for hop_number, hop in enumerate(hops.values()):
        chain = next((chain for chain in chains if chain["peer_ids"][0] == hop["peer_id"]), None)
        if chain is not None:
            name = "wire" if len(chains) == 1 else f"wire {_ends(chain['peer_ids'])}"
            stages.append(_wire(name, chain, hop_number, predicted, fed))
        hope = expected.get(_place(hop)) if fed == 1 else None
        queue_ms, compute_ms, codec_ms = (hop[f"{part}_ms"] * fed for part in ("queue", "compute", "codec"))
        stages.append(
            Stage(
                name=f"{short_peer_id(hop['peer_id'])} blocks {hop['blocks']}",
                predicted_ms=None if hope is None else hope["queue_ms"] + hope["compute_ms"],
                measured_ms=queue_ms + compute_ms + codec_ms,
                peer_id=hop["peer_id"],
                blocks=hop["blocks"],
                queue_ms=queue_ms,
                compute_ms=compute_ms,
                codec_ms=codec_ms,
                note=_mostly(hop),
            )
        )
    local_ms = result["timings"]["local_s"] * 1000 / (1 + passes)
    stages.append(Stage("client (head)", None, local_ms))
    return stages


def _chains_of(order: list[str], chains: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chains that the route's hops are in now: the last ones told, earlier ones may have been mended.
    None where a token never went through them."""
    current: list[dict[str, Any]] = []
    for chain in reversed(chains):
        if [peer for known in current for peer in known["peer_ids"]] == order:
            break
        current.insert(0, chain)
    complete = [peer for chain in current for peer in chain["peer_ids"]] == order
    return current if complete and all(chain["decode"]["tokens"] for chain in current) else []


def _wire(
    name: str, chain: dict[str, Any], first: int, predicted: dict[str, Any] | None, fed: float
) -> Stage:
    """All ways of the chain that begins with hop ``first``."""
    expected, note = None, ""
    if predicted is not None:
        edges = predicted["edges"][first : first + len(chain["peer_ids"]) + 1]
        ways = [edge["wire_ms"] for edge in edges]
        # Where the client carries activations on, the way to it belongs to one chain, the way on to the next.
        for at in (0, -1):
            if edges[at]["from"] and edges[at]["to"]:
                ways[at] /= 2
        expected = sum(ways)
        unmeasured = sum(not edge["measured"] for edge in edges)
        note = f"{unmeasured} of {len(edges)} links were only estimated" if unmeasured else ""
    return Stage(name, expected, chain["wire_ms"] * fed, note=note)


def _ends(peers: Sequence[str]) -> str:
    ends = dict.fromkeys((peers[0], peers[-1]))
    return "–".join(map(short_peer_id, ends))


def _disagreements(stages: tuple[Stage, ...] | list[Stage]) -> list[str]:
    """Where the prediction was wrong by a factor that matters, worst first."""
    total = sum(stage.measured_ms for stage in stages)
    found = []
    for stage in stages:
        if stage.predicted_ms is None:
            continue
        whole = max(total, total + stage.predicted_ms - stage.measured_ms)
        if _differ(stage.predicted_ms, stage.measured_ms, whole):
            apart = abs(stage.predicted_ms - stage.measured_ms)
            found.append((-apart, _sentence(stage)))
    return [sentence for _, sentence in sorted(found)]


def _sentence(stage: Stage) -> str:
    low, high = sorted((stage.predicted_ms or 0.0, stage.measured_ms))
    slower = stage.measured_ms == high
    factor = f"{high / low:.1f} times as {'slow' if slower else 'fast'} as" if low > 0 else "not as"
    because = f" ({stage.note})" if stage.note else ""
    return (
        f"{stage.name}: {stage.measured_ms:.1f} ms a pass, {factor} predicted ({stage.predicted_ms:.1f} ms)"
        f"{because}."
    )


def _differ(predicted_ms: float, measured_ms: float, whole_ms: float) -> bool:
    low, high = sorted((predicted_ms, measured_ms))
    return high - low >= max(LEAST_MS, LEAST_PART * whole_ms) and high >= MATTERS * low


def _mostly(hop: dict[str, Any]) -> str:
    """What a hop's time mostly went into."""
    parts = {name: hop[f"{name}_ms"] for name in ("queue", "compute", "codec")}
    largest = max(parts, key=lambda name: parts[name])
    return f"mostly {largest}"


def _place(hop: dict[str, Any]) -> tuple[str, str]:
    return hop["peer_id"], hop["blocks"]


def waterfall(trace: Trace) -> FittedTable:
    """The stages of a pass, a line each: predicted, measured, its parts, and a bar from when to when."""
    title = "Milliseconds of a decoded token"
    if trace.fed_per_pass > 1:
        title = (
            f"Milliseconds of a pass: {trace.fed_per_pass:.1f} tokens in, {trace.gained_per_pass:.1f} new; "
            "stages work at the same time"
        )
    table = FittedTable(title, gap=1)
    table.add_column("stage", no_wrap=True)
    for heading in ("predicted", "measured", "queue", "compute", "codec"):
        table.add_column(heading, justify="right")
    table.add_column("", no_wrap=True)
    total = sum(stage.measured_ms for stage in trace.stages)
    reached = 0.0
    for stage in trace.stages:
        parts = (stage.queue_ms, stage.compute_ms, stage.codec_ms)
        table.add_row(
            stage.name,
            _ms(stage.predicted_ms),
            _ms(stage.measured_ms),
            *(_ms(part if stage.peer_id else None) for part in parts),
            _bar(reached, stage.measured_ms, total),
        )
        reached += stage.measured_ms
    predicted = [stage.predicted_ms for stage in trace.stages if stage.predicted_ms is not None]
    hops_predicted = all(stage.predicted_ms is not None for stage in trace.stages if stage.peer_id)
    whole = sum(predicted) if predicted and hops_predicted else None  # the sum of a part would look too small
    table.add_row("total", _ms(whole), _ms(total), "", "", "", "")
    return table


def prefill_line(trace: Trace) -> str:
    """One line on the prompt."""
    line = f"Prefill of {trace.prefill_tokens} tokens: {trace.prefill_measured_s:.2f} s measured"
    if trace.prefill_predicted_s is None:
        return line + ", no prediction"
    return line + f", {trace.prefill_predicted_s:.2f} s predicted"


def _passed_over(tried: dict[str, Any]) -> str:
    if not tried.get("count"):
        return ""
    count, first = tried["count"], tried["first"][:PEERS_TOLD]
    told = "; ".join(f"{short_peer_id(peer['peer_id'])}: {peer['cause']}" for peer in first)
    more = f"; and {count - len(first)} more" if count > len(first) else ""
    return f"Passed over {count} peer{'s' * (count > 1)} that could not be used ({told}{more})."


def _ways(hops: Sequence[dict[str, Any]]) -> str:
    edges: list[str] = []
    before, passed_on = "", ""
    for hop in hops:
        name = short_peer_id(hop["peer_id"], hop.get("name", ""))
        way = passed_on or hop.get("way", "")
        if way:
            edges.append(f"{before if passed_on else 'client'} → {name} {way}")
        before, passed_on = name, hop.get("way_on", "")
    return f"Ways: {', '.join(edges)}" if edges else ""


def _codecs(hops: Sequence[dict[str, Any]]) -> str:
    """Of every edge, whether the client carries what goes there or not."""
    names = ["client", *(short_peer_id(hop["peer_id"], hop.get("name", "")) for hop in hops), "client"]
    kinds = [*(hop.get("codec", "") for hop in hops), hops[-1].get("codec_on", "")]
    edges = [f"{a} → {b} {kind}" for (a, b), kind in zip(pairwise(names), kinds, strict=True) if kind]
    return f"Codecs: {', '.join(edges)}" if edges else ""


def _guesses(drafts: dict[str, Any]) -> tuple[str, ...]:
    """A line for each source, with shares from the first guess behind a certain token on; and one for the
    guesses that nothing was there to compare with."""
    lines, others = [], drafts.get("drafted", 0)
    for each in drafts.get("kinds", ()):
        if judged := sum(each["judged"]):
            others -= judged
            shares = [
                f"{number} or more: {right / of:.0%}"
                if number == DEPTHS_TOLD
                else f"{number}: {right / of:.0%}"
                for number, (of, right) in enumerate(zip(each["judged"], each["right"], strict=True), 1)
                if of
            ]
            lines.append(
                f"{_source(each['kind'])}: {sum(each['right'])} of {judged} right; by tokens ahead: "
                + ", ".join(shares)
            )
    if others > 0:
        lines.append(f"Guesses behind a wrong one, or behind the end: {others}")
    return tuple(lines)


def _source(kind: str) -> str:
    name = kind.removesuffix(SECOND)
    return f"{'Guesses' if name == kind else 'Second guesses'} of {SOURCES.get(name, name)}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _bar(start: float, length: float, total: float) -> str:
    """A bar, of BAR characters for ``total``."""
    if total <= 0:
        return ""
    first = round(start / total * BAR)
    return " " * first + "█" * max(1, round((start + length) / total * BAR) - first)
