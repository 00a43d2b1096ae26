"""Commands that a message names, made so that they can be pasted where the message was read."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection

from ....swarm.membership.invite import PREFIX

_COMMAND = re.compile(
    r"`(swarm-node (?:serve|run|plan|pull|generate|chat|gateway|status|models|invite)\b[^`]*)`"
)
_NEEDS_NO_SWARM = ("models unpin", "models --catalogue")
_MODEL = re.compile(r"--model (?:'[^']*'|\S+)")


def pasteable(text: str, arguments: argparse.Namespace, gone: Collection[str] = ()) -> str:
    """``text`` of an error whose commands in backticks are about the model, and lead into the swarm, that
    ``arguments`` say; not by way of the peers with the ids ``gone``."""
    options = swarm_options(arguments, gone)
    model = getattr(arguments, "model", None)

    def completed(found: re.Match[str]) -> str:
        command = found[1]
        if any(words in command for words in _NEEDS_NO_SWARM):
            return found[0]
        if isinstance(model, str) and model:
            command = _MODEL.sub(lambda _: f"--model {shlex.quote(model)}", command)
        # What the message says itself stays.
        words = [option for option in options if option.split(" ")[0] not in command.split()]
        return f"`{' '.join([command, *words])}`"

    return _COMMAND.sub(completed, text)


def completed(command: str, arguments: argparse.Namespace) -> str:
    """A ``swarm-node`` command with what leads into the swarm that ``arguments`` say."""
    return pasteable(f"`{command}`", arguments).strip("`")


def swarm_options(arguments: argparse.Namespace, gone: Collection[str] = ()) -> list[str]:
    """Which swarm, and where, as it was said. An invite is a secret: its text is not repeated, a file's name
    is."""
    found = []
    if join := getattr(arguments, "join", ""):
        found.append(f"--join {'INVITE' if join.lstrip().startswith(PREFIX) else shlex.quote(join)}")
    if name := getattr(arguments, "swarm", ""):
        found.append(f"--swarm {shlex.quote(name)}")
    if key := getattr(arguments, "swarm_key", None):
        found.append(f"--swarm-key {shlex.quote(key)}")
    given = getattr(arguments, "initial_peers", None) or ()
    if peers := [peer for peer in given if peer.rstrip("/").rpartition("/")[2] not in gone]:
        found.append(f"--initial-peers {shlex.quote(','.join(peers))}")
    if not getattr(arguments, "mdns", True):
        found.append("--no-mdns")
    return found
