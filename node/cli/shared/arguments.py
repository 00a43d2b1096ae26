"""Arguments that several commands share, and what their texts are read as."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Unpack

from ....swarm.codecs.names import KINDS
from ....swarm.errors import UsageError
from ....swarm.membership.entry import SwarmEntry, swarm_entry
from ....swarm.types import Span

if TYPE_CHECKING:
    from ....client.connecting import ClientOptions

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("auto", "none", "int8", "int4")


def blocks(text: str) -> Span | str:
    """A span, or ``auto`` or ``all``."""
    return text if text in ("auto", "all") else Span.parse(text)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", re.IGNORECASE)


def byte_size(text: str) -> int:
    """``8GiB``, ``500MiB``, ``1.5G`` (GiB too) or ``2GB`` (10**9) in bytes."""
    if match := _SIZE.fullmatch(text.strip()):
        decimal = text.strip()[-1] in "bB" and not match[3]
        size = float(match[1]) * (1000 if decimal else 1024) ** (1 + "KMGT".index(match[2].upper()))
        if 1 <= size < 2**63:
            return int(size)
    raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 8GiB or 500MiB")


def comma_list(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def seconds(text: str) -> float:
    return _not_below_zero(text, "a number of seconds")


def _not_below_zero(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def above_zero(text: str) -> float:
    value = _not_below_zero(text, "a number above 0")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1, such as 0.5")
    return value


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535, 0 takes a free one)")
    return int(text)


WITH_P2PD = ("bootstrap", "invite")
"""Commands about the DHT itself, which cannot do without p2pd."""


def add_peers(command: argparse.ArgumentParser) -> None:
    """Which swarm, and how to get into it; ``entry_of`` reads it."""
    command.add_argument(
        "--initial-peers",
        metavar="ADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="address of a peer to join through, such as /ip4/192.0.2.7/tcp/31330/p2p/12D3Koo... or "
        "/dns4/HOST/tcp/... (for several, repeat the option or use commas; default: look for peers on the "
        "local network)",
    )
    command.add_argument(
        "--swarm",
        metavar="NAME",
        default="",
        help="name of the swarm; swarms of other names are neither found nor joined (default: the swarm "
        "without a name)",
    )
    command.add_argument(
        "--swarm-key",
        metavar="FILE",
        default=None,
        help="file with the key of the swarm: a peer is admitted only with this key, or with an invite made "
        "with it",
    )
    command.add_argument(
        "--join",
        metavar="INVITE",
        default="",
        help="an invite as `swarm-node invite` prints it, or a file that holds one; it replaces --swarm, "
        "--swarm-key and --initial-peers",
    )
    command.add_argument(
        "--no-mdns",
        dest="mdns",
        action="store_false",
        help="do not look for peers on the local network, and do not be found there",
    )
    if command.prog.rpartition(" ")[2] not in WITH_P2PD:
        command.add_argument(
            "--pure-python",
            action="store_true",
            help="never start p2pd: a client reaches only peers that it can dial itself, a node asks others "
            "for the directory; the default where there is no p2pd, as on Windows",
        )


def entry_of(arguments: argparse.Namespace) -> SwarmEntry:
    """What the words of ``add_peers`` say. Raises UsageError."""
    return swarm_entry(
        arguments.initial_peers or (),
        swarm=arguments.swarm,
        swarm_key=arguments.swarm_key,
        join=arguments.join,
        mdns=arguments.mdns,
        pure_python=getattr(arguments, "pure_python", False),
    )


MODEL_HELP = (
    "a GGUF file, a HuggingFace model directory, or the name of a model on this machine (see `swarm-node "
    "models`), in the swarm, or on the HuggingFace hub"
)


def add_http(command: argparse.ArgumentParser, *, port: int, without_keys: str) -> None:
    """Where a command serves HTTP, and to whom. ``without_keys``: who may ask then."""
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="IP",
        help="address to listen on; :: is every address, of IPv4 too (default: %(default)s, this computer "
        "only)",
    )
    add_port(command, port)
    command.add_argument(
        "--api-key-file",
        default=None,
        metavar="FILE",
        help=f"file of API keys, one a line, # for comments (default: {without_keys})",
    )
    command.add_argument(
        "--tls-cert",
        default=None,
        metavar="FILE",
        help="serve HTTPS with this certificate, a PEM file with its chain; read again when it changes",
    )
    command.add_argument("--tls-key", default=None, metavar="FILE", help="the key of --tls-cert, a PEM file")


def add_port(command: argparse.ArgumentParser, port: int) -> None:
    command.add_argument(
        "--port", type=port_number, default=port, help="TCP port, 0 takes a free one (default: %(default)s)"
    )


def add_drain(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--drain-seconds",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help=f"how long {what} may finish after Ctrl-C or SIGTERM (default: %(default)s)",
    )


def add_model(command: argparse.ArgumentParser) -> None:
    """Add ``--model`` to a command that asks. A command that serves must be given its model."""
    command.add_argument(
        "--model",
        default=None,
        metavar="PATH_OR_NAME",
        help=f"{MODEL_HELP} (default: the one model that the swarm serves)",
    )


def add_compute(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="dtype of activations and unquantized weights"
    )
    command.add_argument(
        "--quantize",
        default="auto",
        choices=QUANTIZE,
        help=f"how {what} are held; auto takes the fastest that loses nothing against the file",
    )
    command.add_argument(
        "--threads", type=positive_int, default=None, help="compute threads (default: the real cores)"
    )


def add_memory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--memory",
        type=byte_size,
        default=None,
        metavar="SIZE",
        help="memory that weights and KV cache may take, such as 8GiB or 500MiB (default: what is free). "
        "Experts that do not fit are read from the file as they are needed",
    )


def add_cache_size(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache-size",
        type=byte_size,
        default=200_000_000_000,
        metavar="SIZE",
        help="disk space for weights that peers sent, in ~/.swarm-node or $SWARM_NODE_HOME; what was used "
        "least recently is deleted first (default: 200GB)",
    )


def add_wire_codec(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wire-codec",
        default="auto",
        choices=("auto", *KINDS),
        help="how activations travel: auto is int8s where scales for a boundary are known, else f8 if the "
        "model's certificate says that it passed, else bf16; none is exact float32 (default: %(default)s)",
    )


def add_sideband(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-sideband",
        action="store_true",
        help="ask a model whose activations tell every peer which tokens they are (Gemma 3n, Gemma 4 E2B and "
        "E4B) in a swarm without a key, too",
    )


def add_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wait",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait this long for a model that nobody has yet, and for a route that covers it (default: "
        "only for blocks that nodes are loading)",
    )


_SAMPLING: Mapping[str, tuple[Callable[[str], float], float | None, str]] = {
    "--temperature": (float, 0.0, "randomness; 0 always takes the most likely token"),
    "--top-k": (int, 0, "sample from this number of most likely tokens; 0 is off"),
    "--top-p": (float, 1.0, "sample from the most likely tokens up to this total probability; 1 is off"),
    "--min-p": (float, 0.0, "sample from tokens with this part of the highest probability; 0 is off"),
    "--repetition-penalty": (float, 1.0, "against tokens of the prompt and the answer; 1 is off"),
    "--frequency-penalty": (float, 0.0, "against tokens of the answer, each time; -2 to 2, 0 is off"),
    "--presence-penalty": (float, 0.0, "against tokens of the answer, once; -2 to 2, 0 is off"),
    "--seed": (int, None, "makes sampling repeatable"),
}
"""How a value is read, the value that switches the option off, and its help."""
CHAT_DEFAULTS: Mapping[str, float] = {
    "--temperature": 0.7,
    "--top-k": 0,
    "--top-p": 0.95,
    "--min-p": 0.0,
    "--repetition-penalty": 1.0,
}
"""What the makers of a model may advise for chats, and how chats sample where they do not."""


def add_sampling(command: argparse.ArgumentParser, *, unset: bool = False) -> None:
    """``unset``: an option that is not given is None, so that a chat keeps only what was chosen."""
    for option, (kind, off, text) in _SAMPLING.items():
        default = "" if off is None else f" (default: {off:g})"
        if unset and option in CHAT_DEFAULTS:
            default = f" (default: as the model's makers advise, else {CHAT_DEFAULTS[option]:g})"
        command.add_argument(
            option, type=kind, default=None if unset else off, metavar="X", help=text + default
        )


def add_speculate(command: argparse.ArgumentParser, *, unset: bool = False) -> None:
    """``unset`` as of ``add_sampling``."""
    command.add_argument(
        "--speculate",
        default=None if unset else "auto",
        choices=("auto", "off"),
        help="send guesses of the next tokens ahead of results where that should save time; answers stay the "
        "same (default: auto)",
    )


def add_draft(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--draft",
        default=None,
        metavar="PATH_OR_NAME",
        help="a small model with the same vocabulary that guesses the next tokens on this machine; off: "
        "from the text alone (default: from the text, and from the block that some models have for it)",
    )


def client_options(arguments: argparse.Namespace, **more: Unpack[ClientOptions]) -> ClientOptions:
    """What every command that answers hands on to the client, and ``more``."""
    return {
        "initial_peers": arguments.initial_peers or (),
        "swarm": arguments.swarm,
        "swarm_key": arguments.swarm_key,
        "join": arguments.join,
        "mdns": arguments.mdns,
        "pure_python": arguments.pure_python,
        "wire_codec": arguments.wire_codec,
        "allow_sideband": arguments.allow_sideband,
        "quantize": arguments.quantize,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "draft": "off" if arguments.speculate == "off" else arguments.draft,
        "wait": arguments.wait,
        **more,
    }


def typed_text(word: str) -> str:
    """A text on the command line: UTF-8, also where the locale knows ASCII only (``LC_ALL=C``)."""
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes that Python could not read stand in it as lone surrogates
        try:
            return os.fsencode(word).decode()
        except UnicodeError:
            raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return word


def decoded(data: bytes, what: str, of: str = "") -> str:
    """Text that came from outside; ``what`` it is and what its bytes are counted ``of``, for the error.
    Raises UsageError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8: {error.reason} at byte {error.start}{of}",
            hint="Convert it first, e.g. with iconv -t UTF-8.",
        ) from error
