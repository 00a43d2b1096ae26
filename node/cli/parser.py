"""The command line's words: every command, option, default and example, and nothing that runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ...swarm.errors import UsageError
from .chat.commands import CHAT_EXAMPLES, add_chat
from .dashboard.options import DASHBOARD_EXAMPLES, add_dashboard
from .doctor.options import DOCTOR_EXAMPLES, add_doctor
from .gateway.options import GATEWAY_EXAMPLES, add_gateway
from .generate.options import GENERATE_EXAMPLES, add_generate
from .models.options import MODELS_EXAMPLES, PLAN_EXAMPLES, PULL_EXAMPLES, add_models, add_plan, add_pull
from .network.options import INVITE_EXAMPLES, STATUS_EXAMPLES, add_invite, add_status
from .run.options import RUN_EXAMPLES, add_run
from .service.options import SERVICE_EXAMPLES, add_service
from .serving.options import BOOTSTRAP_EXAMPLES, SERVE_EXAMPLES, add_bootstrap, add_serve
from .settings.options import COMPLETION_EXAMPLES, CONFIG_EXAMPLES, WORDS, add_completion, add_config
from .shared.logs import add_logging

_COMMANDS: Mapping[str, Sequence[tuple[str, str, str, Callable[[argparse.ArgumentParser], None]]]] = {
    "talk": (
        ("run", "find or serve a model, and talk with it", RUN_EXAMPLES, add_run),
        ("chat", "talk with the model in the terminal", CHAT_EXAMPLES, add_chat),
        ("generate", "answer a prompt through the swarm", GENERATE_EXAMPLES, add_generate),
        ("gateway", "serve a chat page and APIs for programs over HTTP", GATEWAY_EXAMPLES, add_gateway),
    ),
    "serve": (
        ("serve", "load some blocks of a model and serve them", SERVE_EXAMPLES, add_serve),
        ("bootstrap", "start a meeting point for a swarm", BOOTSTRAP_EXAMPLES, add_bootstrap),
        ("invite", "print an invite, with which another machine joins", INVITE_EXAMPLES, add_invite),
        ("service", "have a command run from the machine's start on", SERVICE_EXAMPLES, add_service),
    ),
    "look": (
        ("status", "list nodes, and the blocks that nobody serves", STATUS_EXAMPLES, add_status),
        ("dashboard", "show a swarm live in a browser", DASHBOARD_EXAMPLES, add_dashboard),
        ("doctor", "say what is wrong here, and what to do", DOCTOR_EXAMPLES, add_doctor),
    ),
    "models": (
        ("models", "list models here and in the swarm, or pin a name", MODELS_EXAMPLES, add_models),
        ("plan", "say which blocks this machine would serve", PLAN_EXAMPLES, add_plan),
        ("pull", "fetch a whole model to this machine", PULL_EXAMPLES, add_pull),
    ),
    "options": (
        ("config", "show options in force, and where they come from", CONFIG_EXAMPLES, add_config),
        ("completion", "print what makes a shell complete words", COMPLETION_EXAMPLES, add_completion),
    ),
}
"""Every command by what it is for: its name, what it does, its examples, and what adds its options."""

_BEGIN = """\
  swarm-node run qwen3-0.6b     a chat with a small model, to begin with
  swarm-node COMMAND --help     options of a command, with examples
"""
_EXIT_CODES = """
exit codes: 0 done, 1 unexpected error, 2 wrong usage, 3 the model, 4 the network, 5 no route, 6 a peer or
the protocol, 7 standard output cannot be written, 8 a copied identity, 129 the terminal was closed,
130 Ctrl-C, 141 the reader of standard output left, 143 SIGTERM
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong call like every other error: one line what, one line what to do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"See {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's own, with what is near."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = get_close_matches(str(value), map(str, action.choices or ()), 1)
            if near:
                error.message += f". Did you mean {near[0]}?"
            raise

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """A command refuses the words that it does not know itself, since it knows which ones are near.
        argparse would hand them back to the program, which knows none."""
        args, words = self._apart(list(args)) if self.get_default(WORDS) is not None else (args, [])
        known, unknown = super().parse_known_args(args, namespace)
        if words:
            setattr(known, WORDS, words)
        if not unknown:
            return known, unknown
        option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
        near = get_close_matches(option, self._option_string_actions, 1) if option else []
        did_you_mean = f"Did you mean {near[0]}? " if near else ""
        bare = option.lstrip("-")
        if bare and any(not action.option_strings and action.dest == bare for action in self._actions):
            did_you_mean = f"Give its value by itself: {self.prog} {bare.upper()}. "
        what = f"there is no option {option}" if option else f"unexpected: {' '.join(unknown)}"
        raise UsageError(what, hint=f"{did_you_mean}See {self.prog} --help.")

    @staticmethod
    def _apart(args: list[str]) -> tuple[list[str], list[str]]:
        """What is before the first ``--``, and what is behind it."""
        at = args.index("--") if "--" in args else len(args)
        return args[:at], args[at + 1 :]


class _MainParser(_Parser):
    """Its help is one screen: argparse would list all commands in one row, whoever needs them."""

    def format_help(self) -> str:
        lines = [
            f"{group if not number else '':<9}{name:<12}{summary}"
            for group, commands in _COMMANDS.items()
            for number, (name, summary, *_) in enumerate(commands)
        ]
        return "\n".join([self.format_usage(), f"{self.description}\n", *lines, "", _BEGIN])


class _Version(argparse.Action):
    """Looks for it only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        from .shared.output import print_text

        print_text(f"swarm-node {version('swarm-node')}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = _MainParser(
        prog="swarm-node",
        description="Run one large language model together: each node serves some of its blocks.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for group in _COMMANDS.values():
        for name, summary, examples, add_options in group:
            add_options(_command(commands, name, summary, examples))
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", action="store_true", help="print JSON on standard output")
    command.add_argument(
        "--config",
        default=None,
        metavar="FILE",
        help="TOML file with options that are not given here (default: config.toml in ~/.swarm-node, or in "
        "$SWARM_NODE_HOME, if it is there)",
    )
    add_logging(command)
    return command
