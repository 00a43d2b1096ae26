"""The tree of errors in the docstring is the one of the classes."""

from __future__ import annotations

import re
from importlib import import_module

from swarm_node.swarm import errors
from swarm_node.swarm.errors import (
    ErrorCode,
    HopFailedError,
    PeerError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
    reason_of,
)


def drawn() -> dict[str, str]:
    """The parent of each class as the docstring draws it; the modules that it names are imported."""
    parents: dict[str, str] = {}
    line_of = [("SwarmError", -1)]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(
            r"    ([│ ]*[├└]── )(\w+Error)\b.*?(?:\(([a-z_]+(?:/[a-z_]+)+)\))?(?: +exit \d+)?$", line
        )
        if found is None:
            continue
        branch, name, module = found.groups()
        if module:
            import_module(f"swarm_node.{module.replace('/', '.')}")
        while line_of[-1][1] >= len(branch):
            line_of.pop()
        parents[name] = line_of[-1][0]
        line_of.append((name, len(branch)))
    return parents


def test_the_tree_is_drawn_as_it_is() -> None:
    rooms = ("swarm.transport.direct.transport", "swarm.membership.transport", "dht.delegated.directory")
    for room in (*rooms, "shards.checkpoint.hub"):
        import_module(f"swarm_node.{room}")  # what else is imported is chance
    tree = drawn()
    actual: dict[str, str] = {}
    kinds: list[type[SwarmError]] = [SwarmError]
    while kinds:
        kind = kinds.pop()
        for child in kind.__subclasses__():
            kinds.append(child)
            if not child.__name__.startswith("_") and child.__module__.startswith("swarm_node."):
                actual[child.__name__] = kind.__name__
    assert tree == actual


def test_what_went_wrong_is_one_of_a_few_words() -> None:
    lost = PeerError("text", code=ErrorCode.JOURNAL_LOST, retriable=True)
    assert reason_of(lost) == "journal_lost"
    assert reason_of(HopFailedError("peer", PeerTimeoutError("text"))) == "peer_timeout"
    assert reason_of(StreamClosedError("text")) == "stream_closed"
    assert reason_of(RemoteProtocolError("text")) == "bad_frame"
