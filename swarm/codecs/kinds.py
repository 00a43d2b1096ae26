"""All codecs by name, and the choice of one for an edge between two peers."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ErrorCode, RemoteProtocolError, UsageError
from . import int8s
from .codec import Codec
from .f8 import F8Codec
from .int8 import Int8Codec
from .int8s import Int8sCodec
from .names import DEFAULT_KIND, KINDS, MORE_EXACT
from .plain import PlainCodec
from .scales import ScaleTable, scale_digest

NONE, BF16, FP16 = (PlainCodec(kind, kind) for kind in ("none", "bf16", "fp16"))
INT8 = Int8Codec("int8", "int8")
F8 = F8Codec("f8", "f8")

STATELESS: dict[str, Codec] = {codec.name: codec for codec in (NONE, BF16, FP16, INT8, F8)}
"""All that need no table of scales."""


def codec_named(name: str, width: int, tables: Sequence[bytes] = (), kinds: Sequence[str] = KINDS) -> Codec:
    """The codec that OPEN calls ``name``, of one of ``kinds``, for rows of ``width`` values. ``tables``: of
    scales, as they came from a peer; a name with a digest takes the one that it fits.

    Raises RemoteProtocolError (UNSUPPORTED_CODEC) for an unknown name, and for a table that is missing or
    cannot be.
    """
    kind, _, digest = name.partition(".")
    if kind not in kinds or ((codec := STATELESS.get(name)) is None and kind != int8s.KIND):
        raise _unsupported(f"codec {name} is not one of {', '.join(kinds)}")
    if codec is not None:
        return codec
    for exponents in tables:
        if scale_digest(exponents) == digest:
            return Int8sCodec.of(ScaleTable.from_peer(exponents, width))
    raise _unsupported(f"codec {name} came without its table of scales")


def kind_row_bytes(kind: str, width: int) -> int:
    """Bytes of a row in a codec of this kind. Raises UsageError."""
    codec = STATELESS.get(checked_kind(kind))
    return INT8.row_bytes(width) if codec is None else codec.row_bytes(width)


def checked_kind(kind: str, known: Sequence[str] = KINDS) -> str:
    """The kind itself. Raises UsageError for an unknown one."""
    if kind not in known or kind not in KINDS:
        raise UsageError(f"unknown wire codec {kind!r}", hint=f"Choose from {', '.join(known)}.")
    return kind


def negotiate(
    ours: Sequence[str],
    theirs: Sequence[str],
    wanted: str = DEFAULT_KIND,
    table: ScaleTable | None = None,
) -> Codec:
    """The codec for an edge: of the kind ``wanted`` if both sides speak it and, where it takes a ``table`` of
    scales, there is one; else the smallest possible one that is more exact.

    Raises UsageError when we do not know ``wanted``, RemoteProtocolError (UNSUPPORTED_CODEC) when the peer
    speaks no codec that is at least as exact. So no precision is lost without notice.
    """
    checked_kind(wanted, ours)
    for kind in (wanted, *MORE_EXACT[wanted]):
        if kind not in ours or kind not in theirs:
            continue
        if kind != int8s.KIND:
            return STATELESS[kind]
        if table is not None:
            return Int8sCodec.of(table)
    raise _unsupported(
        f"the peer speaks no wire codec as exact as {wanted}: {', '.join(theirs)[:100] or 'none at all'}"
    )


def _unsupported(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, code=ErrorCode.UNSUPPORTED_CODEC)
