"""HELLO and its answer: what a client and this node have in common, as a pure function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ...shards.pieces.digest import what_differs
from ...swarm.boundaries import Boundaries
from ...swarm.codecs import int8s
from ...swarm.codecs.kinds import kind_row_bytes
from ...swarm.codecs.scales import ScaleTable
from ...swarm.errors import ErrorCode, PeerError, RemoteProtocolError, other_root_hint
from ...swarm.protocol.field_types import MAX_MEMBERS
from ...swarm.protocol.messages import FEATURES, Hello, Welcome
from ...swarm.protocol.wire import FIXED_HEADER, MAX_HEADER
from ...swarm.transport.limited import announced
from ...swarm.types import ModelRef, Span

PROTOCOL_VERSION = 1
FRAME_OVERHEAD = FIXED_HEADER.size + MAX_HEADER
"""A frame may need this many bytes beside its payload."""

ScalesFor = Callable[[str], ScaleTable | None]
"""With which scales rows are wanted from an address group; None: that is not known."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What this node tells every client. ``codecs``: the kinds in which it wants rows. ``page_tokens``: 0
    without a prefix cache. ``scales``: of the rows that enter at its first block. ``line_bytes_per_s``:
    what a person limits its line to."""

    model: ModelRef
    span: Span
    codecs: tuple[str, ...]
    boundaries: Boundaries
    max_frame: int
    max_step_tokens: int
    page_tokens: int
    agent: str
    scales: ScalesFor = lambda group: None
    line_bytes_per_s: float = math.inf


def answer_hello(hello: Hello, terms: Terms, group: str) -> Welcome:
    """The WELCOME for a client of an address ``group``. Raises RemoteProtocolError or PeerError when there is
    nothing to do together: another version, another model, no common codec, or frames too small for one
    token."""
    if PROTOCOL_VERSION not in hello.versions:
        raise RemoteProtocolError(
            f"this node speaks version {PROTOCOL_VERSION}, the client {', '.join(map(str, hello.versions))}",
            hint="Use the same major version of swarm-node on both sides.",
            code=ErrorCode.UNSUPPORTED_VERSION,
        )
    model = terms.model
    if hello.digest and hello.digest != model.digest:
        raise PeerError(
            f"this node serves {model.name} with digest {model.digest[:12]}, "
            f"the client asks for {hello.digest[:12]}{what_differs(model.parts, hello.parts, '; ')}",
            code=ErrorCode.MODEL_MISMATCH,
            retriable=False,
            hint="Client and nodes need the same model files: same weights, same quantization source.",
        )
    if hello.digest and hello.root and model.root and hello.root != model.root:
        raise PeerError(
            f"this node has other files of {model} than the client: their root is {model.root[:12]}, "
            f"that of the client's {hello.root[:12]}",
            code=ErrorCode.MODEL_MISMATCH,
            retriable=False,
            hint=other_root_hint(model.name, model.root),
        )
    shared = tuple(codec for codec in terms.codecs if codec in hello.codecs)
    if not shared:
        raise PeerError(
            f"no common codec: this node speaks {', '.join(terms.codecs)}",
            code=ErrorCode.UNSUPPORTED_CODEC,
            retriable=False,
        )
    scales = terms.scales(group) if int8s.KIND in shared else None
    frame = min(terms.max_frame, hello.max_frame)
    span, widths = terms.span, terms.boundaries.widths
    widest = max(widths[span.start : span.end + 1])
    row = max(kind_row_bytes(kind, widest) for kind in terms.codecs)
    max_step_tokens = min(terms.max_step_tokens, (frame - FRAME_OVERHEAD) // row)
    if max_step_tokens < 1:
        raise PeerError(
            f"a frame of {frame} bytes cannot hold one token of {widest} values",
            code=ErrorCode.UNSUPPORTED,
            retriable=False,
        )
    return Welcome(
        version=PROTOCOL_VERSION,
        digest=model.digest,
        span=span,
        codecs=shared,
        max_frame=terms.max_frame,
        agent=terms.agent,
        max_step_tokens=max_step_tokens,
        n_blocks=model.n_blocks,
        page_tokens=terms.page_tokens,
        root=model.root,
        members=MAX_MEMBERS,
        row_width=widths[span.start],
        reply_width=widths[span.end],
        scales=b"" if scales is None else scales.exponents,
        line=announced(terms.line_bytes_per_s),
        features=FEATURES,
    )
