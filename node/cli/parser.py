"""The command line's words: every command, option, default and example, and nothing that runs."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, NoReturn

from ...shards.models.devices import DEVICES
from ...swarm.errors import UsageError
from ...swarm.transport.addresses import EVERY_INTERFACE
from ..config import KERNELS, KV_DTYPES
from .chat.options import CHAT_EXAMPLES, add_chat
from .gateway_options import add_gateway
from .invite_options import INVITE_EXAMPLES, add_invite
from .models_options import MODELS_EXAMPLES, add_models
from .plan_options import PLAN_EXAMPLES, add_plan
from .shared.arguments import (
    MODEL_HELP,
    above_zero,
    add_compute,
    add_draft,
    add_memory,
    add_model,
    add_peers,
    add_sampling,
    add_speculate,
    add_wait,
    add_wire_codec,
    blocks,
    byte_size,
    comma_list,
    count,
    port_number,
    positive_int,
    seconds,
    share,
    typed_text,
)

BOOTSTRAP_PORT = 31330
"""Where a bootstrap node listens unless told otherwise: its address should survive a restart."""

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
_BOOTSTRAP_EXAMPLES = f"""\
examples:
  swarm-node bootstrap                                listen on port {BOOTSTRAP_PORT} of every interface
  swarm-node bootstrap --host 127.0.0.1 --port 0      this machine only, any free port
  swarm-node bootstrap --relay                        a relay for nodes behind NAT as well
  swarm-node bootstrap --announce /dns4/swarm.example.org/tcp/{BOOTSTRAP_PORT}
"""
_SERVE_EXAMPLES = """\
examples:
  swarm-node serve --model ./SmolLM2-135M-Instruct.Q4_1.gguf --blocks 0-14 --initial-peers ADDR
  swarm-node serve --model HuggingFaceTB/SmolLM2-135M-Instruct --initial-peers ADDR --memory 8GiB
  swarm-node serve --model ./model --blocks 10:20 --device cuda --initial-peers ADDR
  swarm-node serve --model ./model --initial-peers ADDR --relay ADDR     behind NAT: reached through ADDR
  swarm-node serve --model ./model --threads 4 --kv-dtype int8 --kv-cache-tokens 65536

Without --initial-peers the node looks for peers on the local network, and starts a swarm if there is none.
Without --blocks it chooses the blocks that help the swarm most, and chooses again when the swarm changes.
After Ctrl-C it takes no new sessions, gives running ones --drain-seconds, and withdraws its announcement.
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
_GATEWAY_EXAMPLES = """\
examples:
  swarm-node gateway --model PATH --initial-peers ADDR           http://127.0.0.1:8000, this computer only
  swarm-node gateway --model PATH --model PATH --initial-peers ADDR                    several models
  swarm-node gateway --model PATH --initial-peers ADDR --host 0.0.0.0 --api-key-file keys.txt

OpenAI clients take http://127.0.0.1:8000/v1 as base URL; browsers find a chat page at the address itself.
After Ctrl-C it takes no new requests, and gives running ones --drain-seconds.
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


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="swarm-node",
        description="Run one large language model together: each node serves some of its blocks.",
        epilog=_MAIN_EXAMPLES + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swarm-node {version('swarm-node')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_bootstrap(_command(commands, "bootstrap", "start a meeting point for a swarm", _BOOTSTRAP_EXAMPLES))
    _add_serve(_command(commands, "serve", "load some blocks of a model and serve them", _SERVE_EXAMPLES))
    _add_generate(_command(commands, "generate", "answer a prompt through the swarm", _GENERATE_EXAMPLES))
    add_chat(_command(commands, "chat", "talk with the model in the terminal", CHAT_EXAMPLES))
    add_gateway(_command(commands, "gateway", "serve the OpenAI API over HTTP", _GATEWAY_EXAMPLES))
    add_invite(
        _command(commands, "invite", "print an invite, with which another machine joins", INVITE_EXAMPLES)
    )
    add_models(
        _command(commands, "models", "list models here and in the swarm, or pin a name", MODELS_EXAMPLES)
    )
    add_plan(_command(commands, "plan", "say which blocks this machine would serve", PLAN_EXAMPLES))
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


def _add_listen(command: argparse.ArgumentParser, *, port: int) -> None:
    command.add_argument(
        "--host",
        default=EVERY_INTERFACE,
        metavar="IP",
        help="address to listen on: 127.0.0.1 or ::1 for this machine only, 0.0.0.0 or :: for all of IPv4 or "
        "of IPv6 (default: any, which is all of both)",
    )
    command.add_argument(
        "--port", type=port_number, default=port, help="TCP port, 0 takes a free one (default: %(default)s)"
    )
    command.add_argument(
        "--announce",
        metavar="MADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="address to announce instead of those that were found, as behind a port forwarding (repeatable)",
    )
    command.add_argument(
        "--identity",
        metavar="FILE",
        default=None,
        help="Ed25519 key file, created with mode 0600 when missing (default: one in ~/.swarm-node, or in "
        "$SWARM_NODE_HOME, that no other process here uses)",
    )


def _add_bootstrap(command: argparse.ArgumentParser) -> None:
    _add_listen(command, port=BOOTSTRAP_PORT)
    add_peers(command)
    command.add_argument(
        "--relay",
        action="store_true",
        help="also pass on connections to nodes that cannot be dialled; for a host with a public address",
    )


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="", metavar="PATH_OR_NAME", help=MODEL_HELP)
    command.add_argument(
        "--models",
        type=comma_list,
        action="extend",
        default=None,
        metavar="any|NAME,...",
        help="while this machine is idle, load one of these models when clients ask for it; any: every model "
        "that is on this machine or shared by peers",
    )
    command.add_argument(
        "--blocks",
        type=blocks,
        default="auto",
        metavar="SPAN",
        help="blocks to serve: 0-20 (inclusive), 0:21 (half-open), 7 or all; auto: the node chooses the "
        "blocks that help the swarm most, and chooses again when the swarm changes (default: %(default)s)",
    )
    add_memory(command)
    add_peers(command)
    _add_listen(command, port=0)
    command.add_argument(
        "--relay",
        metavar="ADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="for a node behind NAT or a firewall: the address of a `bootstrap --relay` through which others "
        "reach it (repeatable)",
    )
    command.add_argument(
        "--device",
        default="auto",
        choices=DEVICES,
        help="what computes; auto is MLX on an Apple Silicon Mac, else the CPU (default: %(default)s)",
    )
    add_compute(command, "block weights")
    command.add_argument(
        "--kernels",
        default="auto",
        choices=KERNELS,
        help="what computes: native (C, compiled for this CPU once), fast (also rounds activations to 8 "
        "bits) or torch; auto takes the fastest that loses nothing",
    )
    command.add_argument(
        "--deterministic",
        action="store_true",
        help="compute a token to the same bits, whatever is computed beside it and however its prompt is "
        "cut, so that a repair changes no answer; checked at the start",
    )
    _add_cache(command)
    _add_sharing(command)
    _add_weights(command)
    command.add_argument(
        "--drain-seconds",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long running sessions may finish after Ctrl-C or SIGTERM (default: %(default)s)",
    )


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kv-cache-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help="tokens of KV cache over all sessions, in whole pages (default: measured from free memory)",
    )
    command.add_argument(
        "--kv-dtype",
        default="auto",
        choices=KV_DTYPES,
        help="how keys and values are held; auto: float32 with --dtype float32, else 16 bits; int8 halves "
        "those at a small loss",
    )
    command.add_argument(
        "--no-prefix-cache",
        dest="prefix_cache",
        action="store_false",
        help="forget a session's pages at its end; otherwise they are kept for a session of the same client "
        "that begins the same way",
    )
    command.add_argument(
        "--journal-mib",
        type=count,
        default=256,
        metavar="MIB",
        help="memory for the journal: what sessions sent to their next hop, kept for its replacement if it "
        "dies; 0 keeps none (default: %(default)s)",
    )


def _add_sharing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prefill-target-ms",
        type=above_zero,
        default=25.0,
        metavar="MS",
        help="milliseconds that one slice of a client's prompt may add to the time between two tokens of the "
        "others (default: %(default)s)",
    )
    command.add_argument(
        "--max-sessions-per-peer",
        type=positive_int,
        default=64,
        metavar="N",
        help="sessions that one peer may have open (default: %(default)s)",
    )
    command.add_argument(
        "--max-kv-share-per-peer",
        type=share,
        default=1.0,
        metavar="PART",
        help="part of the KV cache that one peer may hold while nobody else wants any; if others wait, each "
        "peer gets an equal part (default: %(default)s)",
    )
    command.add_argument(
        "--idle-session-seconds",
        type=above_zero,
        default=600.0,
        metavar="SECONDS",
        help="drop a session after this time without use; its client can open it again (default: "
        "%(default)s)",
    )


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--share-weights",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="give the model's files to peers that ask for them (default: only if all addresses of this node "
        "are private)",
    )
    command.add_argument(
        "--weights-bandwidth",
        type=above_zero,
        default=None,
        metavar="MBIT",
        help="megabits a second that weights may take, in each direction (default: no bound)",
    )
    command.add_argument(
        "--cache-size",
        type=byte_size,
        default=200_000_000_000,
        metavar="SIZE",
        help="disk space for weights that peers sent, in ~/.swarm-node or $SWARM_NODE_HOME; what was used "
        "least recently is deleted first (default: 200GB)",
    )


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
        "--json-schema",
        default=None,
        metavar="FILE",
        help="make the answer JSON of the schema in this file",
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
    add_compute(command, "the head's weights")
    add_wait(command)
    command.add_argument("--quiet", action="store_true", help="print the answer only: no progress, no route")


def _add_status(command: argparse.ArgumentParser) -> None:
    add_peers(command)
