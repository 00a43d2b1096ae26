"""All codecs by name, and the choice of one for an edge between two peers."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ErrorCode, RemoteProtocolError, UsageError
from .codec import Codec
from .int8 import Int8Codec
from .names import KINDS
from .plain import PlainCodec

NONE, BF16, FP16 = (PlainCodec(kind, kind) for kind in ("none", "bf16", "fp16"))
INT8 = Int8Codec("int8", "int8")

_CODECS: dict[str, Codec] = {codec.name: codec for codec in (NONE, BF16, FP16, INT8)}
DEFAULT_KIND = "int8"
"""Of families for which its error was measured."""
UNMEASURED_KIND = "bf16"
"""Of all other families: a channel of some is a thousand times the median, and int8 loses the rest."""
_INT8_FAMILIES = frozenset(("llama",))
_MORE_EXACT = {"int8": ("bf16", "none"), "bf16": ("none",), "fp16": ("none",), "none": ()}
"""What is taken instead of a kind that a side does not speak, the first that both do. Never fp16: there are
models whose activations it cannot hold."""


def codec_named(name: str, kinds: Sequence[str] = KINDS) -> Codec:
    """The codec that OPEN calls ``name``, of one of ``kinds``. Raises RemoteProtocolError
    (UNSUPPORTED_CODEC)."""
    codec = _CODECS.get(name)
    if codec is None or codec.kind not in kinds:
        raise RemoteProtocolError(
            f"codec {name} is not one of {', '.join(kinds)}", code=ErrorCode.UNSUPPORTED_CODEC
        )
    return codec


def kind_row_bytes(kind: str, width: int) -> int:
    """Bytes of a row in a codec of this kind. Raises UsageError."""
    return _CODECS[checked_kind(kind)].row_bytes(width)


def checked_kind(kind: str, known: Sequence[str] = KINDS) -> str:
    """The kind itself. Raises UsageError for an unknown one."""
    if kind not in known or kind not in KINDS:
        raise UsageError(f"unknown wire codec {kind!r}", hint=f"Choose from {', '.join(known)}.")
    return kind


def negotiate(ours: Sequence[str], theirs: Sequence[str], wanted: str = DEFAULT_KIND) -> Codec:
    """The codec for an edge: ``wanted`` if both sides speak it, else the smallest shared one that is more
    exact.

    Raises UsageError when we do not know ``wanted``, RemoteProtocolError (UNSUPPORTED_CODEC) when the peer
    speaks no codec that is at least as exact. So no precision is lost without notice.
    """
    checked_kind(wanted, ours)
    for kind in (wanted, *_MORE_EXACT[wanted]):
        if kind in ours and kind in theirs:
            return _CODECS[kind]
    raise RemoteProtocolError(
        f"the peer speaks no wire codec as exact as {wanted}: {', '.join(theirs)[:100] or 'none at all'}",
        code=ErrorCode.UNSUPPORTED_CODEC,
    )


def usual_kind(family: str) -> str:
    """The kind for activations of a model of ``family`` (``ModelConfig``), unless a person asks for
    another."""
    return DEFAULT_KIND if family in _INT8_FAMILIES else UNMEASURED_KIND
