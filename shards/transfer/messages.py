"""The messages of ``/swarm-node/weights/1``: frames as everywhere, messages of its own.

asker                            holder
ASK root                  →
                          ←      HOLDS pieces, bitmap         or PIECE_ERROR, and the stream ends
GET_MANIFEST              →
                          ←      MANIFEST
GET piece                 →
                          ←      PIECE | ELSEWHERE | PIECE_ERROR, in the order of the GETs
                          ←      HAVE pieces that came since, at any time
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import numpy as np

from ...swarm.errors import ErrorCode, RemoteProtocolError
from ...swarm.protocol.fields import Blob, Boolean, Choice, Integer, Maybe, Prose, Sequence, Word
from ...swarm.protocol.schema import MessageSet
from ...swarm.protocol.wire import FIXED_HEADER, MAX_HEADER, Payload
from ..pieces.manifest import MAX_MANIFEST, MAX_PIECE, MAX_PIECES

WEIGHTS_PROTOCOL = "/swarm-node/weights/1"
MAX_HAVE = 1024
"""One HAVE names at most this many pieces."""
MAX_MADDRS = 12
ASKER_MAX_FRAME = FIXED_HEADER.size + MAX_HEADER + max(MAX_PIECE, MAX_MANIFEST)
"""A peer that fetches accepts frames of this many bytes."""
HOLDER_MAX_FRAME = FIXED_HEADER.size + 16 * 1024
"""A peer that serves accepts frames of this many bytes: it is sent no payloads."""


class Kind(IntEnum):
    """A frame's kind byte. Part of the protocol: never renumber one."""

    ASK = 1
    HOLDS = 2
    GET_MANIFEST = 3
    MANIFEST = 4
    GET = 5
    PIECE = 6
    ELSEWHERE = 7
    HAVE = 8
    PIECE_ERROR = 9


_PIECE_NUMBER = Integer(0, MAX_PIECES - 1)
PieceNumber = Annotated[int, _PIECE_NUMBER]
Flag = Annotated[bool, Boolean()]
Maddrs = Annotated[
    tuple[str, ...], Sequence(Word(re.compile(r"/[!-~]{1,319}"), "a multiaddress"), 0, MAX_MADDRS)
]


@dataclass(frozen=True, slots=True)
class Ask:
    """First on a stream: the model by the root of its manifest. ``serves``: the asker serves pieces of it as
    they come, under ``maddrs``."""

    root: Annotated[bytes, Blob(32)]
    serves: Flag = False
    maddrs: Maddrs = ()


@dataclass(frozen=True, slots=True)
class Holds:
    """``pieces``: how many the model has. Payload: one bit for each that is here, the first piece in the
    highest bit of the first byte; none at all: every piece is here."""

    pieces: Annotated[int, Integer(1, MAX_PIECES)]
    payload: Payload = b""

    def problem(self) -> str:
        if len(self.payload) not in (0, -(-self.pieces // 8)):
            return f"a bitmap of {len(self.payload)} bytes for {self.pieces} pieces"
        return ""

    def held(self) -> np.ndarray:
        """(pieces,) bool."""
        if not len(self.payload):
            return np.ones(self.pieces, dtype=bool)
        return np.unpackbits(np.frombuffer(self.payload, dtype=np.uint8), count=self.pieces).astype(bool)

    @classmethod
    def of(cls, held: np.ndarray) -> Holds:
        return cls(len(held), b"" if held.all() else np.packbits(held).tobytes())


@dataclass(frozen=True, slots=True)
class GetManifest:
    """Asks for the encoded manifest."""


@dataclass(frozen=True, slots=True)
class Manifest:
    payload: Payload = b""


@dataclass(frozen=True, slots=True)
class Get:
    """``insist``: the holder sends it itself, though it may know another peer that has it."""

    piece: PieceNumber
    insist: Flag = False


@dataclass(frozen=True, slots=True)
class Piece:
    piece: PieceNumber
    payload: Payload = b""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The piece went to this peer, which serves it in turn, or will soon."""

    piece: PieceNumber
    peer_id: Annotated[str, Word(re.compile(r"[1-9A-HJ-NP-Za-km-z]{1,128}"), "a peer id in base58")]
    maddrs: Maddrs = ()


@dataclass(frozen=True, slots=True)
class Have:
    """Pieces that are here since HOLDS or the last HAVE."""

    pieces: Annotated[tuple[int, ...], Sequence(_PIECE_NUMBER, 1, MAX_HAVE)]


@dataclass(frozen=True, slots=True)
class PieceError:
    """Why a GET is not answered (``piece``), or why the stream ends (None)."""

    code: Annotated[ErrorCode, Choice(ErrorCode, unknown=ErrorCode.INTERNAL)]
    message: Annotated[str, Prose(500)]
    piece: Annotated[int | None, Maybe(_PIECE_NUMBER)] = None


PieceMessage = Ask | Holds | GetManifest | Manifest | Get | Piece | Elsewhere | Have | PieceError

PIECE_MESSAGES = MessageSet(
    {
        Kind.ASK: Ask,
        Kind.HOLDS: Holds,
        Kind.GET_MANIFEST: GetManifest,
        Kind.MANIFEST: Manifest,
        Kind.GET: Get,
        Kind.PIECE: Piece,
        Kind.ELSEWHERE: Elsewhere,
        Kind.HAVE: Have,
        Kind.PIECE_ERROR: PieceError,
    }
)


def unexpected(message: object, expected: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"{type(message).__name__} came where {expected} was expected")
