"""A swarm's report for people: tables on a wide terminal, a few short lines a node on a narrow one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from shlex import quote
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ....dht.directory import ALONE_S
from ....swarm.codecs.names import KINDS
from ....swarm.names import digest_prefix, told_apart
from ....swarm.placement.demand import Demand, is_open
from ....swarm.types import short_peer_id
from ..shared.output import answers, plural, print_table, shown

NARROW = 80
"""Columns that the table needs. On a narrower terminal a node has a few short lines in its place."""
_NAME_COLUMNS = 12
"""The table shows at most this many characters of a node's name: ``--json`` has all."""


def print_tables(
    report: dict[str, Any], demand: Sequence[Demand] = (), *, say: Callable[[str], str] = str
) -> None:
    """``say`` completes the commands that are named."""
    _print(_fitting(report, demand, say))


def _fitting(
    report: dict[str, Any], demand: Sequence[Demand], say: Callable[[str], str]
) -> Iterator[str | Table]:
    return parts(report, demand, say=say, narrow=answers.is_terminal and answers.width < NARROW)


def _print(lines: Iterable[str | Table]) -> None:
    for line in lines:
        if isinstance(line, str):
            answers.print(line)
        else:
            print_table(line)


class Watched:
    """A report that is shown again and again: on a terminal in one place, elsewhere one after another. Use
    as a context manager. Nothing is shown if not ``speak``."""

    def __init__(self, *, speak: bool) -> None:
        self._live = (
            Live(console=answers, screen=True, auto_refresh=False, vertical_overflow="ellipsis")
            if speak and answers.is_terminal
            else None
        )

    def __enter__(self) -> Watched:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(
        self, report: dict[str, Any], demand: Sequence[Demand], fault: str, *, say: Callable[[str], str]
    ) -> None:
        """``fault``: why this is what was known before; "" where it is new."""
        remark = f"[yellow]the swarm gave no answer[/]: {shown(fault)}; this is as it was before"
        lines = [*([remark] if fault else []), *_fitting(report, demand, say)]
        if self._live is None:
            _print(lines)
            return
        folded = [
            Text.from_markup(line, overflow="fold") if isinstance(line, str) else line for line in lines
        ]
        self._live.update(Group(*folded, Text("Ctrl-C leaves", style="dim")), refresh=True)


def parts(
    report: dict[str, Any], demand: Sequence[Demand], *, say: Callable[[str], str], narrow: bool
) -> Iterator[str | Table]:
    """Lines with markup, and tables."""
    others = [*demand_lines(demand), *_left_out(report["left_out"]), *([_ALONE] if report["alone"] else [])]
    if not report["models"]:
        start = say("Start with: `swarm-node serve --model PATH_OR_NAME`")
        yield f"Nobody serves a model in this swarm yet. {shown(start)}"
        yield from others
        return
    digests = [model["digest"] for model in report["models"]]
    for model in report["models"]:
        if narrow:
            yield from _cards(model, digests)
        else:
            yield _table(model, digests)
        remarks = (_deterministic, _silent, _by_daemons, _fewer_codecs, _coarse)
        yield from (line for remark in remarks for line in remark(model))
        if model["missing"]:
            known = [(other["name"], other["digest"]) for other in report["models"]]
            which = quote(told_apart(model["name"], model["digest"], known))
            fill = say(f"`swarm-node serve --model {which} --blocks {model['missing'][0]}`")
            yield f"  [bold red]no peer serves blocks {', '.join(model['missing'])}[/]: {shown(fill)}"
        else:
            yield (
                f"  [green]all {model['n_blocks']} blocks are served[/] "
                f"from {plural(model['networks'], 'network')}"
            )
    yield from others
    if not narrow:
        yield _LEGEND


def _cards(model: dict[str, Any], digests: Sequence[str]) -> Iterator[str]:
    """For terminals of 40 columns: every line of a node fits, but for the longest types of weights."""
    yield f"[bold]{shown(model['name'])}[/]"
    yield f"{model['n_blocks']} blocks, digest {digest_prefix(model['digest'], digests)}"
    for node in model["nodes"]:
        figures = _figures(node)
        yield f"[bold]{shown(_who(node))}[/]"
        yield f"  blocks {node['blocks']}, {node['state']}"
        yield f"  {shown(', '.join(_weights(node['weights'])))}"
        yield f"  {figures['ms/tok']} ms/token, prefill {figures['prefill']}/s"
        yield f"  free KV {figures['free KV'].splitlines()[0]}, journal {figures['jrnl']}"
        yield from (f"  states free for {states} sessions" for states in _states(node))
        yield f"  {plural(node['sessions'], 'session')}, {figures['tok/s']} tok/s, wait {figures['wait']} ms"


def _who(node: dict[str, Any]) -> str:
    """A node as people know it."""
    return short_peer_id(node["peer_id"], node["name"])


_LEFT_OUT_SHOWN = 8
"""The tables show at most this many peers that cannot be used, or do not answer: ``--json`` has all."""
_ALONE = (
    "[yellow]The peers that were asked reach no other peer of the swarm[/]. If these are not all its "
    f"peers, the others are still being found: ask again in {ALONE_S:.0f} s."
)
_LEGEND = """\
  [dim]measured by each node: ms/tok a decode step, prefill tokens/s, free KV tokens
  (below it, where blocks keep states: for how many sessions they are free);
  load lately: open sessions, tok/s of all together, ms of wait in the queue;
  jrnl: how full the journal is that repairs need[/]"""


def _table(model: dict[str, Any], digests: Sequence[str] = ()) -> Table:
    # What peers announce is their text: escaped, so that it cannot style our table.
    table = Table(
        title=f"{shown(model['name'])}  ({model['n_blocks']} blocks, "
        f"digest {digest_prefix(model['digest'], digests)})",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,  # the box's own gaps are enough, and all must fit into 80 columns
        show_edge=False,
    )
    for heading in ("peer", "blocks", "state", "weights"):
        table.add_column(heading)
    for heading in _FIGURES:
        table.add_column(heading, justify="right")
    for node in model["nodes"]:
        name = [node["name"][:_NAME_COLUMNS]] if node["name"] else []
        table.add_row(
            "\n".join(map(shown, [*name, short_peer_id(node["peer_id"])])),
            node["blocks"],
            node["state"],
            "\n".join(map(shown, _weights(node["weights"]))),
            *_figures(node).values(),
        )
    return table


_FIGURES = ("ms/tok", "prefill", "free KV", "open", "tok/s", "wait", "jrnl")


def _figures(node: dict[str, Any]) -> dict[str, str]:
    """What a node has measured, by heading."""
    first, last = (int(block) for block in (node["blocks"].split("-") * 2)[:2])
    milliseconds = node["decode_ms_per_block"] * (last - first + 1)
    free, total = node["free_kv_tokens"], node["total_kv_tokens"]
    kept, most = node["journal_bytes"], node["total_journal_bytes"]
    values = (
        f"{milliseconds:.2f}" if milliseconds else "-",
        f"{node['prefill_tokens_per_s']:.0f}" if node["prefill_tokens_per_s"] else "-",
        "\n".join([f"{_short(free)} {100 * free / total:.0f}%" if total else "-", *_states(node)]),
        str(node["sessions"]),
        f"{node['tokens_per_s']:.0f}",
        f"{node['queue_ms']:.{0 if node['queue_ms'] >= 99.95 else 1}f}",
        f"{100 * kept / most:.0f}%" if most else "-",
    )
    return dict(zip(_FIGURES, values, strict=True))


def _states(node: dict[str, Any]) -> list[str]:
    """For how many sessions there are states, if it has blocks that keep one."""
    return [f"{node['free_states']}/{node['total_states']}"] if node["total_states"] else []


_KINDS_SHOWN = 2
"""The table shows at most this many of the types that weights are held as: ``--json`` has all."""


def _weights(weights: str) -> list[str]:
    """In lines that fit into its 14 columns: the types that hold most, the share of experts, what else
    computes."""
    held, *others = weights.replace("|", " ").replace(" of experts", " experts").split(", ")
    kinds = held.split(" + ")
    if len(kinds) > 1:  # of ``int5 (Q5_0)`` the file's type says it all
        kinds = [kind.rpartition("(")[2].rstrip(")") for kind in kinds]
    lines = [" + ".join(kinds[:_KINDS_SHOWN])]
    if len(kinds) > _KINDS_SHOWN:
        lines.append(f"+ {len(kinds) - _KINDS_SHOWN} more")
    return [*lines, *others]


def _silent(model: dict[str, Any]) -> list[str]:
    """The line of nodes that did not answer this machine."""
    silent = model["silent"]
    if not silent:
        return []
    names = ", ".join(map(short_peer_id, silent[:_LEFT_OUT_SHOWN]))
    more = f" and {len(silent) - _LEFT_OUT_SHOWN} more" if len(silent) > _LEFT_OUT_SHOWN else ""
    return [f"  [yellow]did not answer, so not counted[/]: {names}{more}"]


def _fewer_codecs(model: dict[str, Any]) -> list[str]:
    """A line for each node that does not read all the codecs that this version knows."""
    return [
        f"  [dim]{shown(_who(node))} reads no {', '.join(lacks)}[/]: "
        f"rows travel to it in {shown(', '.join(node['codecs']))}"
        for node in model["nodes"]
        if node["codecs"] and (lacks := [kind for kind in KINDS if kind not in node["codecs"]])
    ]


def _coarse(model: dict[str, Any]) -> list[str]:
    """A line for each node that some codecs cost too much."""
    return [
        f"  [yellow]{shown(_who(node))} loses much in {shown(', '.join(node['coarse']))}[/]: "
        "new sessions send it finer rows"
        for node in model["nodes"]
        if node["coarse"]
    ]


def _by_daemons(model: dict[str, Any]) -> list[str]:
    """The line of nodes that no stream reaches without their daemons."""
    peers = [node["peer_id"] for node in model["nodes"] if not node["direct_maddrs"]]
    if not peers:
        return []
    names = ", ".join(map(short_peer_id, peers[:_LEFT_OUT_SHOWN]))
    more = f" and {len(peers) - _LEFT_OUT_SHOWN} more" if len(peers) > _LEFT_OUT_SHOWN else ""
    return [f"  [dim]reached through their daemons only[/]: {names}{more}"]


def _deterministic(model: dict[str, Any]) -> list[str]:
    """Which nodes compute a token to the same bits in any batch: one line for each arithmetic."""
    alike: dict[tuple[str, str], list[str]] = {}
    for node in model["nodes"]:
        if node["deterministic"]:
            alike.setdefault((node["blocks"], node["row_check"]), []).append(short_peer_id(node["peer_id"]))
    return [
        f"  deterministic, blocks {blocks}, row check {check}: {', '.join(peers)}"
        for (blocks, check), peers in alike.items()
    ]


def _left_out(peers: Sequence[dict[str, Any]]) -> list[str]:
    """The peers whose announcements cannot be used: a line for each of the first few."""
    lines = [
        f"  [yellow]left out: {short_peer_id(peer['peer_id'])}[/], {shown(peer['reason'])}"
        for peer in peers[:_LEFT_OUT_SHOWN]
    ]
    more = len(peers) - len(lines)
    return [*lines, f"  [yellow]left out: {more} more[/]"] if more > 0 else lines


def _short(tokens: int) -> str:
    """12 thousand as ``12k``: a table must fit into 80 columns."""
    return f"{tokens // 1000}k" if tokens >= 10_000 else str(tokens)


def demand_lines(demand: Sequence[Demand], most: int = 8) -> list[str]:
    """``wanted: NAME by 2 peers; …abc123 is loading 0-10; nobody has 11-29``, as rich markup."""
    lines = [_demand_line(each) for each in demand[:most]]
    if len(demand) > most:
        lines.append(f"[dim]{len(demand) - most} more models are wanted[/]")
    return lines


def _demand_line(demand: Demand) -> str:
    peers = plural(len(demand.peers), "peer")
    parts = [f"[yellow]wanted[/]: {shown(str(demand.model))} by {peers}"]
    parts += [f"{short_peer_id(node.peer_id)} is loading {node.span}" for node in demand.loading[:2]]
    if demand.ref is None:
        parts.append("nobody serves it")
    elif demand.missing:
        parts.append(f"nobody has {', '.join(map(str, demand.missing))}")
    elif not is_open(demand) and not demand.loading:
        parts.append("all its blocks are served now")
    return "; ".join(parts)
