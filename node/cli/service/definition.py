"""What a service runs: the command with its options, as they are in force where it is installed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....swarm.errors import UsageError
from ....swarm.membership.invite import PREFIX
from ..settings.resolve import parse_words
from ..shared.arguments import entry_of

SERVICES = ("serve", "gateway", "bootstrap", "dashboard")
"""Commands that run until they are stopped."""

CARRIED = ("PATH", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE")
"""Variables that a service needs beside ours, with the values of where it was installed. No token is
among them: what a service is started with can be read by others."""

AFTER_DRAIN_S = 20.0
"""Seconds that a process has beyond its drain until it is killed: it withdraws its announcement and ends its
daemon."""


@dataclass(frozen=True, slots=True)
class Service:
    """``command``: which of ``SERVICES``. ``words``: what to start. ``user``: whose rights it has, where the
    system starts it; "" is the one who installs it. ``stop_s``: seconds to end in."""

    command: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    stop_s: float
    user: str = ""

    @property
    def title(self) -> str:
        return f"swarm-node {self.command}"


def unit_name(command: str) -> str:
    return f"swarm-node-{command}"


def service_of(
    parser: argparse.ArgumentParser,
    command: str,
    words: Sequence[str],
    environ: Mapping[str, str],
    *,
    config: str | None = None,
    user: str = "",
) -> Service:
    """Raises UsageError: options that the command would refuse when it starts."""
    given = [f"--config={Path(config).expanduser().absolute()}"] if config else []
    arguments = parse_words(parser, [command, *given, *words], environ).arguments
    if any(PREFIX in word for word in words):
        raise UsageError(
            "an invite is a secret, and what a service is started with can be read by others",
            hint="Save it in a file that only you can read, and give that: --join FILE",
        )
    if "initial_peers" in arguments:
        entry_of(arguments)
    ours = {name: value for name, value in environ.items() if name.startswith("SWARM_NODE_") and value}
    if home := ours.get("SWARM_NODE_HOME"):
        ours["SWARM_NODE_HOME"] = str(Path(home).absolute())
    return Service(
        command,
        # -P: what lies in the folder is not imported.
        (sys.executable, "-P", "-m", "swarm_node.node.cli", command, *given, *words),
        {name: environ[name] for name in CARRIED if environ.get(name)} | ours,
        Path(os.getcwd()),
        getattr(arguments, "drain_seconds", 0.0) + AFTER_DRAIN_S,
        user,
    )
