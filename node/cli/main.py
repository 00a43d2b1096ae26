"""``swarm-node``: the command line."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ...swarm.errors import SwarmError, UsageError
from ...swarm.runtime.tasks import new_event_loop
from .early_checks import check_words
from .parser import build_parser
from .settings.resolve import Settings, parse_words
from .shared.logs import LogOptions, set_up_logging
from .shared.output import exit_code_of, print_error, starting_line
from .shared.pasting import pasteable
from .shared.signals import dying_of_ctrl_c, exiting_on_end_signals, until_ended
from .shared.streams import StandardStreams

NODES = ("serve", "bootstrap", "gateway", "dashboard")
"""Commands that go on even if their output is not read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors become one or two lines, never a traceback."""
    with StandardStreams() as streams:
        return _answer(list(sys.argv[1:] if argv is None else argv), streams)


def _answer(words: list[str], streams: StandardStreams) -> int:
    as_json = "--json" in words
    settings = Settings(arguments := argparse.Namespace())
    try:
        settings = _settings(words)
        arguments = settings.arguments
        as_json = arguments.json
        speak = not (as_json or getattr(arguments, "quiet", False))
        if arguments.command in NODES:
            streams.never_wait()
        set_up_logging(LogOptions.of(arguments))
        if settings.warning:
            logging.getLogger(__name__).warning(settings.warning)
        check_words(arguments)
        if arguments.command in ("chat", "run"):  # they wait for keys in this thread, without an event loop
            with exiting_on_end_signals():
                with dying_of_ctrl_c(), starting_line(speak=speak):
                    talk = _talk(arguments)
                    _all_is_imported()
                talk(arguments)
        else:
            with dying_of_ctrl_c(), starting_line(speak=speak):
                command = _command(arguments)
                _all_is_imported()
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                return runner.run(until_ended(command))
    except (SwarmError, KeyboardInterrupt, BaseExceptionGroup) as error:
        origin = settings.origin(f"{error} {getattr(error, 'hint', '')}")
        print_error(
            error,
            as_json=as_json,
            say=lambda hint, gone: f"{pasteable(hint, arguments, gone)} {origin}".strip(),
        )
        return exit_code_of(error)
    except Exception as error:  # the last resort: two lines for people, the rest for the log
        logging.getLogger(__name__).debug("unexpected error", exc_info=error)
        print_error(error, as_json=as_json)
        return 1
    return 0


def _settings(words: list[str]) -> Settings:
    """Raises UsageError. A file that cannot be used does not keep the doctor from saying so itself."""
    parser = build_parser()
    try:
        return parse_words(parser, words, os.environ)
    except UsageError:
        if words[:1] != ["doctor"]:
            raise
        return Settings(parser.parse_args(words))


def _all_is_imported() -> None:
    """Python looks for garbage again, and not in what stays to the end."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _talk(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], None]:
    if arguments.command == "run":
        from .run.run import run_run

        return run_run
    from .chat.chat import run_chat

    return run_chat


def _command(arguments: argparse.Namespace) -> Coroutine[Any, Any, int | None]:
    # Each command imports what it needs: --help and a wrong option answer at once. It does so before there is
    # an event loop, in which Ctrl-C would have to wait for the imports.
    match arguments.command:
        case "serve":
            from .serving.serve import run_serve

            return run_serve(arguments)
        case "bootstrap":
            from .serving.bootstrap import run_bootstrap_command

            return run_bootstrap_command(arguments)
        case "models":
            from .models.models import run_models

            return run_models(arguments)
        case "plan":
            from .models.plan import run_plan

            return run_plan(arguments)
        case "pull":
            from .models.pull import run_pull

            return run_pull(arguments)
        case "status":
            from .network.status import run_status

            return run_status(arguments)
        case "invite":
            from .network.invite import run_invite

            return run_invite(arguments)
        case "gateway":
            from ...client.http.extra import require_http

            require_http("the gateway")
            from .gateway.gateway import run_gateway

            return run_gateway(arguments)
        case "dashboard":
            from ...client.http.extra import require_http

            require_http("the dashboard")
            from .dashboard.dashboard import run_dashboard

            return run_dashboard(arguments)
        case "doctor":
            from .doctor.doctor import run_doctor

            return run_doctor(arguments, build_parser())
        case "config":
            from .settings.show import run_config

            return run_config(arguments, build_parser())
        case "service":
            from .service.service import run_service

            return run_service(arguments, build_parser())
        case "completion":
            from .settings.completion import run_completion

            return run_completion(arguments, build_parser())
        case _:
            from .generate.generate import run_generate

            return run_generate(arguments)
