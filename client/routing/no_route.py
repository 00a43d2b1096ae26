"""Why there is no route, with as much help as possible."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet

from ...dht.directory import Directory
from ...shards.pieces.digest import what_differs
from ...swarm.errors import BusyError, ModelMismatchError, NetworkError, SwarmError
from ...swarm.names import digest_prefix
from ...swarm.routing.best_route import NoRouteError, start_a_peer
from ...swarm.types import ModelRef, NodeInfo, NodeState, Span, short_peer_id

_TOLD = 2
"""A line of progress names at most this many nodes, and this many models of one name."""


async def explain(
    error: NoRouteError,
    kv_tokens: int,
    model: ModelRef,
    directory: Directory,
    causes: Mapping[str, SwarmError],
    banned: AbstractSet[str],
) -> SwarmError:
    """The error to raise in place of ``error``. ``causes``: the last failures, by peer id."""
    if directory.is_alone:
        error = NoRouteError(
            f"{error.message} The peers that were asked reach no other peer of the swarm.",
            hint=error.hint,
            missing=error.missing,
            seen=error.seen,
        )
    if not error.seen:
        return await _absence(error, model, directory)
    causes = {
        node.peer_id: causes[node.peer_id]
        for node in error.seen
        if node.peer_id in banned and node.peer_id in causes
    }
    if not causes:
        return error
    text = "; ".join(
        f"{short_peer_id(peer_id)}: {cause.message}" for peer_id, cause in list(causes.items())[:2]
    )
    kinds = {type(cause) for cause in causes.values()}
    if kinds == {ModelMismatchError}:
        return ModelMismatchError(f"no route: {text}", hint=next(iter(causes.values())).hint)
    if kinds == {BusyError}:
        pause = min(cause.retry_after for cause in causes.values() if isinstance(cause, BusyError))
        return BusyError(
            f"every peer that could serve {kv_tokens} tokens is busy ({text})",
            retry_after=pause,
            hint="Try again later, or ask for fewer new tokens.",
        )
    return NoRouteError(
        f"{error.message} Why they failed: {text}", hint=error.hint, missing=error.missing, seen=error.seen
    )


def nobody_opens(tried: Collection[str], cause: SwarmError, blocks: Span | None = None) -> NoRouteError:
    """The error where peers are announced, and of those that were ``tried`` none opens a session.
    ``blocks``: what the last one was tried for, where it is known."""
    some = "1 peer is announced that does" if len(tried) == 1 else f"{len(tried)} peers are announced that do"
    error = NoRouteError(
        f"{some} not serve{f' blocks {blocks}' if blocks else ''}; the last one: {cause.message}",
        hint=start_a_peer(blocks)
        if blocks
        else "Try again, or ask the people who run the swarm; `swarm-node status` lists the announced nodes.",
        missing=(blocks,) if blocks else (),
        seen=(),
    )
    error.gone = frozenset(tried)
    return error


def who_loads(seen: Sequence[NodeInfo]) -> str:
    """``…abc123 is loading 0-10 and …def456 is loading 11-20``; "" if none is."""
    coming = sorted((node.span, node.peer_id) for node in seen if node.state is NodeState.JOINING)
    told = [f"{short_peer_id(peer_id)} is loading {span}" for span, peer_id in coming[:_TOLD]]
    if len(coming) > _TOLD:
        told.append(f"{len(coming) - _TOLD} more are loading")
    return " and ".join(told)


async def _absence(error: NoRouteError, ours: ModelRef, directory: Directory) -> SwarmError:
    """No node serves this model: say what is served instead."""
    try:
        models = [model for model in await directory.models() if model.digest != ours.digest]
    except NetworkError:
        return error
    same = [model for model in models if model.name == ours.name]
    if same:
        digests = [model.digest for model in models]
        names = " or ".join(f"{model.name}@{digest_prefix(model.digest, digests)}" for model in same[:_TOLD])
        difference = what_differs(ours.parts, same[0].parts, "; ") if len(same) == 1 else ""
        return ModelMismatchError(
            f"nobody serves your {ours}; under that name another model is announced: {names}"
            + (f" or {len(same) - _TOLD} more" if len(same) > _TOLD else difference),
            hint=f"Use the same files as the nodes, or, if you trust its nodes, --model {names}",
        )
    if not models:
        return error
    names = ", ".join(str(model) for model in models[:4]) + (", …" if len(models) > 4 else "")
    return NoRouteError(
        f"nobody serves {ours}. The swarm serves: {names}.", hint=error.hint, missing=error.missing, seen=()
    )
