"""Arguments that several commands share, and what their texts are read as."""

from __future__ import annotations

import argparse
from typing import Any

from ..swarm.errors import UsageError
from ..swarm.types import Span

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("auto", "none", "int8", "int4")
WIRE_CODECS = ("none", "bf16", "fp16", "int8")


def span(text: str) -> Span:
    return Span.parse(text)


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
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def above_zero(text: str) -> float:
    value = seconds(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part above 0 and at most 1, such as 0.5")
    return value


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535, 0 takes a free one)")
    return int(text)


def add_peers(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--initial-peers",
        metavar="ADDR",
        type=comma_list,
        action="extend",
        default=None,
        required=required,
        help="address of a peer to join through, such as /ip4/192.0.2.7/tcp/31330/p2p/12D3Koo... "
        "(several: repeat the option, or commas)",
    )


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        required=True,
        metavar="PATH_OR_NAME",
        help="a GGUF file, a HuggingFace model directory, or a name on the HuggingFace hub",
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


def add_wire_codec(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wire-codec",
        default="int8",
        choices=WIRE_CODECS,
        help="how activations travel; none is exact float32 (default: %(default)s)",
    )


def add_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wait",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait this long for a route that covers the model (default: do not wait)",
    )


def add_speculate(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--speculate",
        default="auto",
        choices=("auto", "off"),
        help="check guesses of the next tokens in one pass, where that is faster; answers are the same "
        "(default: %(default)s)",
    )


def client_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every command that answers hands on to the client."""
    names = ("wire_codec", "quantize", "dtype", "threads", "draft", "wait")
    return {name: getattr(arguments, name) for name in names}


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
