"""What a run of chaos comes to: figures from what was watched, tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from ..bench.figures import percentile
from .watch import Watch

LOST = ("lost", "doubled", "differing")


def spread(values: Sequence[float]) -> dict[str, float]:
    """How many, the median, the 99th percentile and the largest."""
    return {
        "n": len(values),
        "p50": round(percentile(values, 0.5), 4),
        "p99": round(percentile(values, 0.99), 4),
        "max": round(max(values, default=0.0), 4),
    }


def grouped(pairs: Iterable[tuple[str, float]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in sorted(groups.items())}


def figures(watch: Watch, seconds: float) -> dict[str, Any]:
    """``stalls``: from a fault to the first token of the repaired route, as the reader of a stream sees it.
    ``repairs``: from the moment that the client noticed."""
    by_kind = Counter(fault.kind for fault in watch.faults)
    kinds_of_repair: dict[str, Counter[str]] = {}
    for repair in watch.repairs:
        kinds_of_repair.setdefault(repair["fault"], Counter())[repair.get("kind", "?")] += 1
    return {
        "seconds": round(seconds, 1),
        "faults": dict(sorted(by_kind.items())),
        "faults_total": len(watch.faults),
        "faults_per_minute": round(60 * len(watch.faults) / max(seconds, 1e-9), 1),
        "generations": watch.generations,
        "failed_generations": len(watch.failures),
        "tokens": watch.tokens,
        "drafted": watch.drafted,
        "accepted": watch.accepted,
        **{name: watch.wrong[name] for name in LOST},
        "stalls": grouped(watch.stalls),
        "unharmed": dict(sorted(watch.unharmed.items())),
        "repairs": grouped((repair["fault"], repair.get("seconds", 0.0)) for repair in watch.repairs),
        "repairs_by_kind": {fault: dict(kinds) for fault, kinds in sorted(kinds_of_repair.items())},
        "replayed": {
            "tokens": sum(repair.get("replayed_tokens", 0) for repair in watch.repairs),
            "bytes_nodes": sum(repair.get("replayed_bytes_nodes", 0) for repair in watch.repairs),
            "bytes_client": sum(repair.get("replayed_bytes_client", 0) for repair in watch.repairs),
        },
        "bans": watch.bans,
        "false_bans": len(watch.false_bans),
        "retries": dict(watch.retries.most_common()),
        "without_progress_s": spread(watch.gaps),
    }


def problems_of(watch: Watch) -> list[str]:
    found = [f"{watch.wrong[name]} tokens {name}" for name in LOST if watch.wrong[name]]
    found += [f"a generation failed: {failure}" for failure in watch.failures[:20]]
    if not watch.generations:
        found.append("no generation came to its end")
    return found + [f"false ban: {ban}" for ban in watch.false_bans[:20]]


def tables(report: dict[str, Any]) -> list[Table | str]:
    """For the console, in order."""
    table = Table(
        title=f"{report['faults_total']} faults in {report['seconds']:.0f} s "
        f"({report['faults_per_minute']:.0f} a minute), seed {report['seed']}, {report['mode']}",
        title_justify="left",
    )
    columns = ("fault", "times", "streams hit", "unharmed", "stall p50", "p99", "repair p50", "p99", "by")
    for column in columns:
        table.add_column(column, justify="left" if column in ("fault", "by") else "right")
    for kind in sorted(report["faults"].keys() | report["repairs"].keys()):
        stall, repair = report["stalls"].get(kind), report["repairs"].get(kind)
        kinds = report["repairs_by_kind"].get(kind, {})
        table.add_row(
            kind,
            str(report["faults"].get(kind, 0)),
            str(stall["n"] if stall else 0),
            str(report["unharmed"].get(kind, 0)),
            *(_seconds(stall, name) for name in ("p50", "p99")),
            *(_seconds(repair, name) for name in ("p50", "p99")),
            ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())),
        )
    replayed, gaps = report["replayed"], report["without_progress_s"]
    lines = [
        f"{report['generations']} generations, {report['tokens']} tokens: {report['lost']} lost, "
        f"{report['doubled']} doubled, {report['differing']} differing; "
        f"{report['failed_generations']} generations failed",
        f"{report['drafted']} tokens were drafted, {report['accepted']} of them were right",
        f"replayed {replayed['tokens']} tokens: {_size(replayed['bytes_nodes'])} sent by nodes, "
        f"{_size(replayed['bytes_client'])} by clients",
        f"time without a token: p50 {gaps['p50'] * 1000:.0f} ms, p99 {gaps['p99'] * 1000:.0f} ms, "
        f"longest {gaps['max']:.2f} s",
        f"{report['bans']} bans, {report['false_bans']} of healthy peers; tried again after: "
        + (", ".join(f"{name} {count}" for name, count in report["retries"].items()) or "nothing"),
    ]
    return [table, *lines]


def _seconds(values: dict[str, float] | None, name: str) -> str:
    return f"{values[name]:.2f} s" if values else ""


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
