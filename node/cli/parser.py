"""The command line's words: every command, option, default and example, and nothing that runs."""

from __future__ import annotations

import argparse
import math
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from ...shards.models.devices import DEVICES
from ...swarm.errors import UsageError
from ..config import KERNELS, KV_DTYPES
from .chat.commands import CHAT_EXAMPLES, add_chat
from .gateway_options import GATEWAY_EXAMPLES, add_gateway
from .serve_options import BOOTSTRAP_EXAMPLES, SERVE_EXAMPLES, add_bootstrap, add_serve
from .shared.arguments import (
    MODEL_HELP,
    add_compute,
    add_draft,
    add_memory,
    add_model,
    add_peers,
    add_sampling,
    add_sideband,
    add_speculate,
    add_wait,
    add_wire_codec,
    positive_int,
    typed_text,
)

_MAIN_EXAMPLES = """\
examples, on one local network, where peers find each other:
  swarm-node plan --model PATH                     what this machine would serve
  swarm-node serve --model PATH                    on each machine
  swarm-node chat --model PATH                     on any of them
  swarm-node generate --model PATH "What is the capital of France?"
  swarm-node status
elsewhere:
  swarm-node bootstrap                             a meeting point; prints its address ADDR
  swarm-node serve --model PATH --initial-peers ADDR
  swarm-node invite --initial-peers ADDR           one line for others to give as --join
"""
_GENERATE_EXAMPLES = """\
examples:
  swarm-node generate --model PATH --initial-peers ADDR "What is the capital of France?"
  swarm-node generate --model PATH --initial-peers ADDR --raw "Once upon a time"
  cat question.txt | swarm-node generate --model PATH --initial-peers ADDR -
  swarm-node generate --model PATH --initial-peers ADDR --temperature 0.7 --top-p 0.9 --seed 1 "A poem"

If the model has a chat template, the prompt is one chat message (with the template's default system prompt).
The answer goes to standard output as it is generated, everything else to standard error.
"""
_INVITE_EXAMPLES = """\
examples:
  swarm-node invite --swarm home --swarm-key ~/home.key        the first time: makes the key as well
  swarm-node serve --model PATH --swarm home --swarm-key ~/home.key      a node that has the key
  swarm-node serve --model PATH --join swn1...                           a node that was invited
  swarm-node chat --model PATH --join invite.txt                         the invite in a file
  swarm-node invite --initial-peers ADDR                                 without a key: addresses only

The invite goes to standard output. If the swarm has a key, keep it secret: a machine that has the invite can
join until it ends.
"""
_MODELS_EXAMPLES = """\
examples:
  swarm-node models                          on this machine, in the swarm, and wanted there
  swarm-node models --initial-peers ADDR --json | jq -r '.swarm[].name'
  swarm-node models --local                  on this machine only; no swarm is asked
  swarm-node models pin NAME@DIGEST          from now on NAME means this model on this machine
  swarm-node models unpin NAME

A model's name is that of its file or directory in ~/.swarm-node/models (or $SWARM_NODE_HOME/models), or its
name on the HuggingFace hub if it was downloaded from there: swarm-node serve --model NAME.
"""
_PLAN_EXAMPLES = """\
examples:
  swarm-node plan --model NAME                             what this machine would do in this LAN's swarm
  swarm-node plan --model PATH --initial-peers ADDR --memory 8GiB
  swarm-node plan --model PATH --initial-peers ADDR --json | jq -r '.verdict, .blocks'

Nothing is loaded or announced. The speed is measured with a few made-up blocks, for about a second.
"""
_STATUS_EXAMPLES = """\
examples:
  swarm-node status --initial-peers ADDR
  swarm-node status --initial-peers ADDR --json | jq '.models[].missing'
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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """A command refuses the words that it does not know itself, since it knows which ones are near.
        argparse would hand them back to the program, which knows none."""
        known, unknown = super().parse_known_args(args, namespace)
        if not unknown:
            return known, unknown
        option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
        near = get_close_matches(option, self._option_string_actions, 1) if option else []
        did_you_mean = f"Did you mean {near[0]}? " if near else ""
        what = f"there is no option {option}" if option else f"unexpected: {' '.join(unknown)}"
        raise UsageError(what, hint=f"{did_you_mean}See {self.prog} --help.")


class _Version(argparse.Action):
    """Looks for it only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        from .shared.output import print_text

        print_text(f"swarm-node {version('swarm-node')}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="swarm-node",
        description="Run one large language model together: each node serves some of its blocks.",
        epilog=_MAIN_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_bootstrap(_command(commands, "bootstrap", "start a meeting point for a swarm", BOOTSTRAP_EXAMPLES))
    add_serve(_command(commands, "serve", "load some blocks of a model and serve them", SERVE_EXAMPLES))
    _add_generate(_command(commands, "generate", "answer a prompt through the swarm", _GENERATE_EXAMPLES))
    add_chat(_command(commands, "chat", "talk with the model in the terminal", CHAT_EXAMPLES))
    add_gateway(_command(commands, "gateway", "serve the OpenAI API over HTTP", GATEWAY_EXAMPLES))
    _add_invite(
        _command(commands, "invite", "print an invite, with which another machine joins", _INVITE_EXAMPLES)
    )
    _add_models(
        _command(commands, "models", "list models here and in the swarm, or pin a name", _MODELS_EXAMPLES)
    )
    _add_plan(_command(commands, "plan", "say which blocks this machine would serve", _PLAN_EXAMPLES))
    _add_status(
        _command(commands, "status", "list nodes, and the blocks that nobody serves", _STATUS_EXAMPLES)
    )
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", action="store_true", help="print JSON on standard output")
    command.add_argument(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="how much to log to standard error (default: %(default)s)",
    )
    return command


def _add_generate(command: argparse.ArgumentParser) -> None:
    add_model(command)
    add_peers(command)
    command.add_argument("prompt", type=typed_text, help="the text; - reads standard input")
    raw = command.add_mutually_exclusive_group()
    raw.add_argument("--raw", action="store_true", help="send the text as it is, without the chat template")
    raw.add_argument(
        "--raw-text",
        action="store_const",
        const="text",
        dest="raw",
        help="as --raw, but control tokens that are spelled out in the text, such as </s>, are plain text",
    )
    command.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="longest answer, in tokens (default: %(default)s)",
    )
    add_sampling(command)
    command.add_argument(
        "--stop",
        type=typed_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text (repeatable)",
    )
    command.add_argument(
        "--ignore-eos", action="store_true", help="do not end the answer at the end-of-sequence token"
    )
    command.add_argument(
        "--json-schema", default=None, metavar="FILE", help="make the answer JSON of the schema in this file"
    )
    command.add_argument(
        "--logprobs",
        type=int,
        default=None,
        metavar="N",
        help="with --json: the probability of each token, and the N most likely tokens (0 to 20)",
    )
    add_speculate(command)
    add_draft(command)
    command.add_argument(
        "--trace",
        action="store_true",
        help="show what the route should have cost and what it did cost, stage by stage (also in --json)",
    )
    add_wire_codec(command)
    add_sideband(command)
    add_compute(command, "the head's weights")
    add_wait(command)
    command.add_argument("--quiet", action="store_true", help="print the answer only: no progress, no route")


def _add_status(command: argparse.ArgumentParser) -> None:
    add_peers(command)


_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_DURATION = re.compile(r"(\d{1,5})([mhdw])")


def duration(text: str) -> float:
    """``30d`` in seconds; ``ever`` is inf."""
    if text == "ever":
        return math.inf
    if (match := _DURATION.fullmatch(text)) and int(match[1]):
        return int(match[1]) * _SECONDS[match[2]]
    raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 12h, 30d, 8w or ever")


def _add_invite(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    command.add_argument(
        "--lasts",
        type=duration,
        default=None,
        metavar="TIME",
        help="how long a machine that joins with the invite is a member: 90m, 12h, 30d, 8w or ever (default: "
        "30d)",
    )


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        nargs="?",
        choices=("pin", "unpin"),
        help="pin NAME to one model on this machine, or remove the pin; without this, list models",
    )
    command.add_argument("name", nargs="?", metavar="NAME[@DIGEST]", help="the model to pin or unpin")
    add_peers(command)
    command.add_argument("--local", action="store_true", help="list only what is on this machine")


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="PATH_OR_NAME", help=MODEL_HELP)
    add_peers(command)
    add_memory(command)
    command.add_argument(
        "--device", default="auto", choices=DEVICES, help="what computes (default: %(default)s)"
    )
    add_compute(command, "block weights")
    command.add_argument(
        "--kernels", default="auto", choices=KERNELS, help="with which kernels (default: %(default)s)"
    )
    command.add_argument(
        "--kv-cache-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help="tokens of KV cache that need room (default: one full context)",
    )
    command.add_argument(
        "--kv-dtype",
        default="auto",
        choices=KV_DTYPES,
        help="how keys and values are held (default: %(default)s)",
    )
