"""``swarm-node plan``: what this machine would serve, or why it would not help, before anything loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from shlex import quote

from ....shards.models.devices import choose_device
from ....swarm.placement.types import Gain, Serve, gigabytes
from ....swarm.types import NodeInfo, short_peer_id
from ...auto.machine import room_for
from ...auto.plan import Outlook, look_ahead
from ...config import NodeConfig
from ...engine.memory.span_memory import SessionBytes
from ..shared.arguments import entry_of
from ..shared.output import answers, plural, print_json, shown
from ..shared.progress import progress_shown

MOST_NAMED = 8
"""A line for people names at most this many peers that do not answer: ``--json`` has all."""


async def run_plan(arguments: argparse.Namespace) -> None:
    config = NodeConfig(
        model=arguments.model,
        auto=True,
        memory=arguments.memory,
        device=choose_device(arguments.device, only_cpu=arguments.kernels != "auto").name,
        auto_device=arguments.device == "auto",
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        kernels=arguments.kernels,
        threads=arguments.threads,
        kv_cache_tokens=arguments.kv_cache_tokens,
        kv_dtype=arguments.kv_dtype,
    )
    with progress_shown("Starting ...", speak=not arguments.json) as line:
        outlook = await look_ahead(entry_of(arguments), config, on_stage=line.update)
    if arguments.json:
        print_json(outlook.as_dict())
    else:
        for text in lines(outlook):
            answers.print(text)


def lines(outlook: Outlook) -> list[str]:
    """For people, with markup."""
    machine, model = outlook.machine, outlook.model
    weights = machine.weight_bytes or model.n_blocks * machine.shape.block_bytes
    room = f"{gigabytes(weights)} for weights as {machine.weights}, {session_words(machine.session)}"
    speed = (
        f"{machine.decode_ms_per_block:.3f} ms per block and token{_growth(machine.context_ms_per_block)}, "
        f"{shown(machine.kernels)} kernels"
        if machine.decode_ms_per_block
        else "not measured"
    )
    return [
        f"[bold]{shown(model.name)}[/]: {model.n_blocks} blocks, {shown(room)}",
        *_files(outlook),
        f"This machine: {gigabytes(machine.memory_bytes)} usable, "
        f"{room_for(machine.max_blocks(), machine.max_lean_blocks())}; {speed}",
        *_alike(outlook),
        *_others(outlook),
        _swarm(outlook),
        _verdict(outlook),
    ]


def _growth(context_ms: float) -> str:
    return f" (and {context_ms:.3f} for each 1000 tokens before it)" if context_ms >= 0.0005 else ""


def session_words(session: SessionBytes) -> str:
    """What a session takes in all blocks of a model, for people."""
    per_1000 = f"{gigabytes(1000 * session.per_token)} per 1000 tokens"
    if not session.fixed:
        return f"{per_1000} of a session"
    return f"{gigabytes(session.fixed)} a session" + (f" + {per_1000}" if session.per_token else "")


def _files(outlook: Outlook) -> list[str]:
    """Of a model that is not here."""
    if (files := outlook.files) is None:
        return []
    size, pull = gigabytes(files.nbytes), f"`swarm-node pull {quote(files.hub_name)}`"
    return [f"It is not here, so sizes are the catalogue's: {size} on the hub, all of it by {shown(pull)}"]


def _alike(outlook: Outlook) -> list[str]:
    if (found := outlook.alike) is None:
        return []
    count, speed = len(found.spans), 1 / found.token_s
    what = "This machine alone carries it" if count == 1 else f"{count} machines like this one carry it"
    return [f"{what}: about {speed:.{1 if speed < 10 else 0}f} tokens/s are expected in one home network"]


def _others(outlook: Outlook) -> list[str]:
    """What the swarm's machines could hold, whatever they serve now; unless they serve the model already."""
    if not outlook.others or outlook.nodes:
        return []
    known = [each for each in outlook.others if each.blocks is not None]
    rooms = [f"{short_peer_id(each.node.peer_id)} {each.blocks}" for each in known[:MOST_NAMED]]
    if len(known) > MOST_NAMED:
        rooms.append(f"{len(known) - MOST_NAMED} more")
    found = []
    if known:
        found.append(f"Blocks that others could hold in place of what they serve: {', '.join(rooms)}")
    if unknown := len(outlook.others) - len(known):
        found.append(f"Not counted: {plural(unknown, 'node')} of a model whose size is not known here")
    room, blocks = outlook.known_room, outlook.model.n_blocks
    if room >= blocks:
        return [*found, "[green]Together with this machine there is room for all of it[/]"]
    return [*found, f"[yellow]Together with this machine there is room for {room} of {blocks} blocks[/]"]


def _swarm(outlook: Outlook) -> str:
    if not outlook.swarm_found:
        return "No swarm was found here: this machine would begin one."
    if not outlook.nodes:
        return f"Nobody in the swarm serves this model yet{_silent(outlook.silent) or '.'}"
    missing = ", ".join(map(str, outlook.missing))
    nodes = plural(len(outlook.nodes), "node")
    text = f"The swarm: {nodes}; {f'blocks {missing} are missing' if missing else 'every block is served'}"
    return text + _silent(outlook.silent)


def _silent(nodes: Sequence[NodeInfo]) -> str:
    if not nodes:
        return ""
    names = ", ".join(short_peer_id(node.peer_id) for node in nodes[:MOST_NAMED])
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return f"; did not answer, so not counted: {names}{more}"


def _verdict(outlook: Outlook) -> str:
    verdict = outlook.verdict
    if not isinstance(verdict, Serve):
        return f"[yellow]This machine would stand by[/]: {shown(verdict.why.removeprefix('stands by: '))}"
    text = f"[green]This machine would {shown(verdict.why)}[/]"
    if verdict.token_s is None:
        left = ", ".join(map(str, outlook.missing_with(verdict.span)))
        return f"{text}; blocks {left} would still be missing" if left else text
    if verdict.token_s_before is None:
        return f"{text}: a token takes {verdict.token_s * 1000:.1f} ms then"
    before, after = verdict.token_s_before * 1000, verdict.token_s * 1000
    if verdict.gain is Gain.FASTER:
        return f"{text}: from {before:.1f} to {after:.1f} ms per token"
    if verdict.gain is Gain.THROUGHPUT:
        text += f": from {verdict.tokens_per_s_before:.0f} to {verdict.tokens_per_s:.0f} tokens/s"
    return f"{text}; a token takes {after:.1f} ms"
