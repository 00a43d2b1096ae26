"""What can be wrong with a command before a model is read or a peer dialled: said before anything heavy is
imported."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ...client.http.admission import ApiKeys
from ...client.http.listening import listen
from ...client.http.tls import tls_of
from ...shards.formats.not_a_model import models_in, no_path_error
from ...swarm.errors import UsageError
from ...swarm.transport.addresses import listen_maddrs, listenable
from .chat.conversation import read_saved
from .generate.options import read_schema
from .shared.arguments import entry_of


def check_words(arguments: argparse.Namespace) -> None:
    """Addresses, invites, keys, saved chats and schemas can be read, ports are free, and there is something
    at a model's path. Raises UsageError, ListenError, CheckpointError."""
    if arguments.command == "plan" and not arguments.model:
        raise UsageError(
            "plan needs the name of a model",
            hint="`swarm-node models --catalogue` lists some: `swarm-node plan qwen3-8b`",
        )
    makes_key = arguments.command == "invite" and arguments.swarm_key and not arguments.join
    if "initial_peers" in arguments and not makes_key:
        entry_of(arguments)
    if arguments.command in ("serve", "bootstrap"):
        listenable(listen_maddrs(arguments.host, arguments.port))
        if arguments.metrics is not None:
            listenable(listen_maddrs(arguments.metrics_host, arguments.metrics))
    if arguments.command == "serve" and arguments.dashboard is not None:
        listenable(listen_maddrs("127.0.0.1", arguments.dashboard))
    for file in (getattr(arguments, name, None) for name in ("api_key_file", "metrics_key_file")):
        if file is not None:
            ApiKeys.read(file)
    if arguments.command in ("gateway", "dashboard"):
        listen(arguments.host, arguments.port).close()
        tls_of(arguments.tls_cert, arguments.tls_key)
    _check_models(getattr(arguments, "model", None) or [])
    for option, read in (("load", read_saved), ("json_schema", read_schema)):
        if (file := getattr(arguments, option, None)) is not None and _can_be_read_again(file):
            read(file)


def _can_be_read_again(name: str) -> bool:
    """What comes by a pipe, as of ``<(command)``, is read once: by the command."""
    path = Path(name).expanduser()
    return path.is_file() or not path.exists()


def _check_models(names: str | list[str]) -> None:
    """Raises CheckpointError for what can only be a path, and leads nowhere."""
    for name in [names] if isinstance(names, str) else names:
        path = Path(name).expanduser()
        if name.startswith((".", "/", "~", os.sep)) and not path.exists():
            raise no_path_error(name, models_in(path.parent))
