"""``swarm-node run``: find a model in the swarm, or serve what is missing of it here; then chat."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ....shards.models.devices import choose_device
from ....swarm.boundaries import span_around
from ....swarm.errors import RouteError
from ....swarm.membership.entry import SwarmEntry
from ....swarm.placement.types import Serve, gigabytes
from ....swarm.types import Span
from ...auto.plan import Outlook, is_served, look_ahead
from ...config import NodeConfig
from ...weights.pull import pull_model
from ..chat.chat import has_editor, run_chat
from ..chat.held_keys import held_keys
from ..shared.arguments import entry_of
from ..shared.board import Board
from ..shared.output import console, events, shown
from .own_node import OwnNode

FEWER_TOKENS = 16384
"""Tokens of KV cache where one full context, of up to 262,144 tokens, leaves no room for the blocks."""
_ROUTE_S = 30.0
"""Seconds for the chat to see what the node has announced."""


def run_run(arguments: argparse.Namespace) -> None:
    """Returns when the user leaves. Raises SwarmError."""
    talk = argparse.Namespace(**vars(arguments))  # hints after the end do not name the node that is gone
    with held_keys(has_editor(arguments)), ExitStack() as stack:
        with Board("Looking for the swarm ...", speak=not arguments.json) as board:
            outlook = asyncio.run(_lacking(arguments, entry_of(arguments), board))
            if outlook is not None:
                span = _own_span(outlook)
                _say(arguments, outlook, span)
                asyncio.run(_fetched(arguments, span, board))
                node = stack.enter_context(OwnNode(_words(arguments, outlook, span)))
                board.stage("Starting a node on this machine ...")
                node.wait_online(lambda event: _told(event, board))
                if not arguments.join:
                    talk.initial_peers = [*(arguments.initial_peers or ()), *node.maddrs[:1]]
                talk.wait = max(arguments.wait, _ROUTE_S)
        run_chat(talk)


async def _lacking(arguments: argparse.Namespace, entry: SwarmEntry, board: Board) -> Outlook | None:
    """What this machine could serve of a model that the swarm does not serve whole; None if it does."""
    served = await is_served(entry, arguments.model, on_stage=board.stage)
    if served:
        return None
    if served is None:  # no swarm was found: it is not looked for twice
        entry = replace(entry, mdns=False)
    config = NodeConfig(
        model=arguments.model,
        auto=True,
        memory=arguments.memory,
        device=choose_device("auto").name,
        auto_device=True,
        kv_cache_tokens=arguments.kv_cache_tokens,
    )
    outlook = await look_ahead(entry, config, on_stage=board.stage, on_progress=board.progress)
    shape = outlook.machine.shape
    if (
        _covering(outlook) is None
        and arguments.kv_cache_tokens is None
        and shape.context_tokens > FEWER_TOKENS
    ):
        smaller = replace(config, kv_cache_tokens=FEWER_TOKENS)
        outlook = await look_ahead(entry, smaller, on_stage=board.stage, on_progress=board.progress)
    return outlook


def _covering(outlook: Outlook) -> Span | None:
    """The missing blocks, and what may lie between them, if this machine can serve all of that."""
    verdict, missing = outlook.verdict, outlook.missing
    if not isinstance(verdict, Serve) or outlook.missing_with(verdict.span):
        return None
    if not missing:  # they have come meanwhile: another copy
        return verdict.span
    return span_around(Span(missing[0].start, missing[-1].end), outlook.machine.shape.cuts)


def _own_span(outlook: Outlook) -> Span:
    """Raises RouteError where more machines are needed."""
    if (span := _covering(outlook)) is not None:
        return span
    machine, alike = outlook.machine, outlook.alike
    needs = f"{len(alike.spans)} machines like this one carry it" if alike else machine.why_no_block()
    missing = ", ".join(map(str, outlook.missing))
    raise RouteError(
        f"nobody serves blocks {missing} of {outlook.model.name}, and not all of them fit here: {needs}",
        hint="On each of them: `swarm-node serve --model NAME`. Or take a smaller model: "
        "`swarm-node models --catalogue`",
    )


def _say(arguments: argparse.Namespace, outlook: Outlook, span: Span) -> None:
    """Before anything is fetched or served."""
    size, tokens = outlook.machine.shape.room(span), outlook.machine.shape.context_tokens
    if arguments.json:
        events.print(
            {"event": "serving", "model": outlook.model.name, "blocks": str(span), "memory_bytes": size}
        )
        return
    missing = ", ".join(map(str, outlook.missing))
    who = (
        "Only this machine can use it" if _is_private(arguments) else "Others of the swarm can use it as well"
    )
    console.print(
        f"Nobody serves blocks {missing} of {shown(outlook.model.name)}: this machine serves {span} until "
        f"you leave ({gigabytes(size)}, with room for {tokens} tokens). {who}."
    )


async def _fetched(arguments: argparse.Namespace, span: Span, board: Board) -> None:
    """What the node, and the chat, will read, with a bar that the node's process cannot show."""
    await pull_model(
        arguments.model,
        entry_of(arguments),
        cache_bytes=arguments.cache_size,
        blocks=span,
        on_stage=board.stage,
        on_progress=board.progress,
    )


def _is_private(arguments: argparse.Namespace) -> bool:
    return entry_of(arguments).is_alone


def _words(arguments: argparse.Namespace, outlook: Outlook, span: Span) -> list[str]:
    """Options of ``swarm-node serve``."""
    words = ["--model", arguments.model, "--blocks", str(span)]
    words += ["--kv-cache-tokens", str(outlook.machine.shape.context_tokens)]
    words += ["--cache-size", f"{arguments.cache_size / 1000:.0f}KB"]
    if _is_private(arguments):
        words += ["--host", "127.0.0.1"]
    for name, value in (
        ("--join", arguments.join),
        ("--swarm", arguments.swarm),
        ("--swarm-key", arguments.swarm_key),
    ):
        words += [name, value] if value else []
    for peer in arguments.initial_peers or ():
        words += ["--initial-peers", peer]
    if not arguments.mdns:
        words.append("--no-mdns")
    if arguments.pure_python:
        words.append("--pure-python")
    return words


def _told(event: dict[str, Any], board: Board) -> None:
    match event["event"]:
        case "compiling":
            board.stage("Compiling kernels for this CPU (once, some seconds) ...")
        case "loading":
            board.stage(f"Loading blocks {event['blocks']} of {event['model']} ...")
        case "waiting":
            board.stage(str(event["message"]))
