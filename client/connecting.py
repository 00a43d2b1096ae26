"""The options of everything that connects a client, and what it does first: open models, join the swarm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, TypedDict

from ..swarm.codecs import native
from ..swarm.codecs.names import KINDS
from ..swarm.errors import UsageError
from ..swarm.membership.entry import SwarmEntry, swarm_entry
from ..swarm.runtime.cores import default_threads
from .drafting.next_guesses import NEXT_BYTES
from .local_model import LocalModel, OnProgress, hashing_told, load_local_model
from .model_opening import OnDecision, fetch_client_part, open_model
from .network import ClientNetwork
from .params import GenerateOptions
from .routing.prefix import check_salt


class EntryOptions(TypedDict, total=False):
    """Which swarm, and through which peers. Defaults are those of ``swarm_entry``."""

    initial_peers: Sequence[str]
    swarm: str
    swarm_key: str | PathLike[str] | None
    join: str
    mdns: bool
    pure_python: bool


class HeadOptions(TypedDict, total=False):
    """How this machine holds its part of a model. Defaults are those of ``load_local_model``."""

    quantize: str
    dtype: str
    device: str
    draft: str | PathLike[str] | None


class SessionOptions(TypedDict, total=False):
    """How answers are computed. Defaults are those of ``AsyncSwarmModel``."""

    wire_codec: str
    wait: float
    on_progress: OnProgress | None
    prefix_cache: bool
    prefix_salt: bytes | None
    chain: bool


class ClientOptions(EntryOptions, HeadOptions, SessionOptions, total=False):
    """Keyword arguments that ``connect``, ``generate``, ``from_pretrained``, ``open_gateway`` and the command
    line share; ``SwarmModel.connect`` says what they mean."""

    threads: int | None
    on_decision: OnDecision | None
    allow_sideband: bool


class ConnectOptions(ClientOptions, total=False):
    model: str | PathLike[str] | None


class OnceOptions(ClientOptions, GenerateOptions, total=False):
    """Keyword arguments of the function ``generate`` alone."""


def part(options: Mapping[str, Any], kind: Any) -> Any:
    """The options that ``kind``, a TypedDict, names."""
    return {name: value for name, value in options.items() if name in kind.__annotations__}


def checked_entry(options: ClientOptions) -> SwarmEntry:
    """The swarm that the options name. Raises UsageError for an option that cannot be, before anything is
    loaded or dialled."""
    for name in sorted(set(options) - set(ConnectOptions.__annotations__)):
        known = ", ".join(sorted(ConnectOptions.__annotations__))
        raise UsageError(f"connect has no option {name!r}", hint=f"Options: {known}.")
    check_session(**part(options, SessionOptions))
    if (threads := options.get("threads")) is not None and threads < 1:
        raise UsageError(f"{threads} threads are not possible", hint="Give 1 or more.")
    return swarm_entry(**part(options, EntryOptions))


def check_session(
    *, wire_codec: str = "auto", wait: float = 0.0, prefix_salt: bytes | None = None, **_: object
) -> None:
    """Raises UsageError for SessionOptions that cannot be."""
    if prefix_salt is not None:
        check_salt(prefix_salt)
    if wire_codec not in ("auto", *KINDS):
        raise UsageError(f"unknown wire codec {wire_codec!r}", hint=f"Choose from auto, {', '.join(KINDS)}.")
    if not wait >= 0:
        raise UsageError(f"cannot wait for {wait!r} seconds", hint="Give 0 or more.")


def check_sideband(models: Iterable[LocalModel], entry: SwarmEntry) -> None:
    """Raises UsageError for a model whose rows tell every hop which tokens they are, in a swarm that
    strangers may be in."""
    for model in models:
        if model.sideband and not entry.is_keyed:
            raise UsageError(
                f"{model.ref.name} tells every peer of a route its text, and anybody may be in this swarm",
                hint="Ask it in a swarm with a key (--swarm-key or --join), or allow it: --allow-sideband.",
            )


async def open_models(
    names: Iterable[str | PathLike[str] | None], entry: SwarmEntry, options: ClientOptions
) -> tuple[ClientNetwork, list[LocalModel]]:
    """Join the swarm and load the client's part of each model, all at once; a name of None is the one model
    that the swarm serves. What is opened belongs to the caller. Raises as ``SwarmModel.connect``: where both
    fail, what the models raise is the better message."""
    on_progress = options.get("on_progress")
    load = partial(
        load_local_model,
        threads=options.get("threads") or default_threads(),
        on_progress=on_progress,
        **part(options, HeadOptions),
    )
    fetch = partial(fetch_client_part, next_bytes=NEXT_BYTES if options.get("draft") is None else 0)
    waits_for = "Waiting for a peer of the swarm ..." if entry.initial_peers else "Looking for the swarm ..."

    def on_joining(text: str) -> None:
        nonlocal waits_for
        waits_for = text
        if on_progress is not None:
            on_progress(text)

    joining = asyncio.create_task(ClientNetwork.join(entry, on_joining))
    loading = [
        asyncio.create_task(
            hashing_told(
                open_model(
                    name,
                    joining,
                    load,
                    fetch=fetch,
                    wait=options.get("wait", 0.0),
                    on_progress=on_progress,
                    on_decision=options.get("on_decision"),
                ),
                on_progress,
            ),
            name="loading",
        )
        for name in names
    ]
    warming = asyncio.create_task(asyncio.to_thread(native.warm_up))
    try:
        await asyncio.wait((warming, *loading))
        if not joining.done() and on_progress is not None:
            on_progress(waits_for)  # what was loaded meanwhile has told of itself last
        await asyncio.wait((joining,))
        models = [task.result() for task in loading]
        if not options.get("allow_sideband", False):
            check_sideband(models, entry)
        return joining.result(), models
    except BaseException:
        for task in (joining, *loading):
            task.cancel()
        await asyncio.wait((joining, *loading))
        for opened in loading:
            if not opened.cancelled() and opened.exception() is None:
                opened.result().close()
        if not joining.cancelled() and joining.exception() is None:
            await joining.result().close()
        raise
