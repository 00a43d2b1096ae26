"""What this machine could do for a model, measured before any of its weights are here.

A few made-up blocks of the model's shape, held as its weights would be, on the device that will serve: enough
of them that they do not all stay in the processor's cache, which a whole span does not either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from statistics import fmean

from ...shards.formats.config import ModelConfig
from ...shards.formats.tensors import TensorInfo, block_names
from ...shards.loading import load_backend
from ...shards.models.random_blocks import random_checkpoint
from ...shards.native.span import WEIGHTS_SHARE, NativeSpan, least_held
from ...swarm.codecs.kinds import DEFAULT_KIND, kind_row_bytes
from ...swarm.placement.types import ModelShape, NodeOffer, Serve, StandBy, Verdict, gigabytes
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import PeerLink, Span
from ..config import NodeConfig
from ..engine.memory.page_tables import pages_for
from ..engine.memory.span_memory import SESSION_TOKENS, SessionBytes, SpanMemory
from ..engine.self_bench import measure_self
from ..loaded_span import is_memory_error, kv_dtype_of, load_options
from ..resources import MemoryShortError, give_memory_back, usable_memory

CACHE_BYTES = 32 * 1024 * 1024
"""Weights measured together, at least: more than most last-level caches have for one process."""
MOST_BLOCKS = 8
"""Measured together at most: of models whose blocks are small enough that more would take long to make."""
MOST_KINDS = 6
"""At most this many kinds of blocks are measured, a second each: in a file every block may differ."""
_NOTHING = SessionBytes(0, 0)


@dataclass(frozen=True, slots=True)
class MeasuredMachine:
    """``shape``: what the model costs here. ``memory_bytes``: usable for weights and KV cache.
    ``decode_ms_per_block``: one token, batch 1, in the mean of all blocks; each 1000 tokens before it add
    ``context_ms_per_block``. ``prefill_tokens_per_s``: through one block. All are 0 where some block does
    not fit, so that none was measured. ``weights``, ``kernels`` and ``kv_dtype``: how they would be held and
    computed, for people. ``device``: where. ``weight_bytes``: of all blocks. ``session``: what one costs in
    all of them. ``sessions``: for how many there is room for states, 0 where no block keeps one.
    ``lean``: what the model costs with most experts left in the file; None where they cannot stay there."""

    shape: ModelShape
    memory_bytes: int
    decode_ms_per_block: float
    prefill_tokens_per_s: float
    weights: str
    kernels: str
    kv_dtype: str
    device: str = "cpu"
    lean: ModelShape | None = None
    weight_bytes: int = 0
    session: SessionBytes = _NOTHING
    sessions: int = 0
    context_ms_per_block: float = 0.0

    def max_blocks(self) -> int:
        """With all of their experts in memory."""
        return self.shape.max_blocks(self.memory_bytes)

    def max_lean_blocks(self) -> int:
        return 0 if self.lean is None else self.lean.max_blocks(self.memory_bytes)

    def choose(self, plan_join: Callable[[ModelShape], Verdict]) -> tuple[Verdict, ModelShape]:
        """What ``plan_join`` says of the model with all experts in memory or, if that leaves blocks that no
        node serves and more fit so, with most experts in the file; and the shape it was asked of."""
        verdict = plan_join(self.shape) if self.max_blocks() else StandBy(self.why_no_block())
        covers = isinstance(verdict, Serve) and verdict.token_s is not None
        if self.lean is None or covers or self.max_lean_blocks() <= self.max_blocks():
            return verdict, self.shape
        if isinstance(verdict, StandBy) and self.max_blocks():
            return verdict, self.shape
        lean = plan_join(self.lean)
        return (lean, self.lean) if isinstance(lean, Serve) else (verdict, self.shape)

    def why_no_block(self) -> str:
        """For people, where no block fits."""
        shape = self.lean or self.shape
        count = f"{self.sessions} session{'' if self.sessions == 1 else 's'}"
        states = f" and the states of {count}" if self.sessions else ""
        weights = gigabytes(shape.block_bytes)
        fits = shape.block_bytes < self.memory_bytes
        return (
            f"one block takes {gigabytes(shape.room_of(1))} with {shape.context_tokens} tokens of KV "
            f"cache{states}, and {gigabytes(self.memory_bytes)} are usable here; "
            + ("a smaller --kv-cache-tokens helps" if fits else f"its weights alone take {weights}")
        )

    def offer(self, peer_id: str, links: tuple[PeerLink, ...] = ()) -> NodeOffer:
        return NodeOffer(
            peer_id=peer_id,
            memory_bytes=self.memory_bytes,
            decode_ms_per_block=self.decode_ms_per_block,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            links=links,
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "memory_bytes": self.memory_bytes,
            "max_blocks": self.max_blocks(),
            "max_lean_blocks": self.max_lean_blocks(),
            "block_bytes": self.shape.block_bytes,
            "kv_bytes_per_block": self.shape.kv_bytes * self.shape.context_tokens,
            "state_bytes_per_block": self.shape.state_bytes,
            "planned_sessions": self.sessions,
            "weight_bytes": self.weight_bytes,
            "session_bytes": self.session.fixed,
            "bytes_per_1000_tokens": 1000 * self.session.per_token,
            "context_tokens": self.shape.context_tokens,
            "decode_ms_per_block": round(self.decode_ms_per_block, 4),
            "context_ms_per_block": round(self.context_ms_per_block, 4),
            "prefill_tokens_per_s_per_block": round(self.prefill_tokens_per_s, 1),
            "weights": self.weights,
            "kernels": self.kernels,
            "kv_dtype": self.kv_dtype,
        }


def room_for(blocks: int, lean_blocks: int) -> str:
    """``max_blocks`` and ``max_lean_blocks``, for people."""
    more = f" (for {lean_blocks} with part of their experts in memory)" if lean_blocks > blocks else ""
    return f"room for {blocks} block{'' if blocks == 1 else 's'}{more}"


def measure_machine(
    config: NodeConfig, model: ModelConfig, manifest: Mapping[str, TensorInfo], threads: int
) -> MeasuredMachine:
    """Takes a second or two; call it in a thread of its own, and leave the processor alone meanwhile.

    Raises UsageError for a device that is not there, MemoryShortError where not even one block fits.
    """
    config = config.for_model(model)
    memory = usable_memory(config.device, config.memory)
    if max(least := _least_bytes(config, model, manifest)) > usable_memory(config.device, None):
        return _too_small(config, model, least, memory)
    kinds = _kinds(model, manifest)
    of_block: dict[int, _MeasuredKind] = {}
    try:
        for blocks in sorted(kinds, key=lambda kind: model.blocks[kind[0]].reads is not None):
            measured = _measure_kind(config, model, manifest, blocks, memory, threads, of_block)
            of_block |= dict.fromkeys(blocks, measured)
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise MemoryShortError(
            f"not even one block of the model fits into the memory of {config.device}",
            hint="Close other programs, or choose --quantize int4.",
        ) from error
    give_memory_back(config.device)
    each = [of_block[block] for block in range(model.n_blocks)]
    usual = of_block[kinds[0][0]]
    decode_ms = fmean(kind.decode_ms for kind in each)
    held = _Held.of(config, model, usual.kv_dtype)
    weights = [kind.weight_bytes for kind in each]
    shape = _shape(model, weights, held)
    if len(kinds) == 1:
        shape = replace(shape, rooms=())
    else:
        shape = replace(shape, times=tuple(kind.decode_ms / decode_ms for kind in each))
    return MeasuredMachine(
        shape=shape,
        memory_bytes=memory,
        decode_ms_per_block=decode_ms,
        prefill_tokens_per_s=1 / fmean(1 / kind.prefill_tokens_per_s for kind in each),
        context_ms_per_block=fmean(kind.context_ms for kind in each),
        weights=usual.weights,
        kernels=usual.kernels,
        kv_dtype=usual.kv_dtype,
        device=config.device,
        lean=_lean(shape, each, held),
        weight_bytes=sum(weights),
        session=held.session,
        sessions=held.sessions,
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """What is planned to be held of sessions. ``context``: their tokens together. In each block, bytes:
    ``kv`` for keys and values of these, ``states`` for those of ``sessions``. ``session``: what one costs."""

    context: int
    kv: list[int]
    states: list[int]
    sessions: int
    session: SessionBytes

    @classmethod
    def of(cls, config: NodeConfig, model: ModelConfig, kv_dtype: str) -> _Held:
        """As a node takes it which was told its tokens, whichever of the blocks it serves; else what it
        should have at least."""
        asked, longest = config.kv_cache_tokens, model.max_position_embeddings
        batch = config.max_batch_tokens
        blocks = SpanMemory.each(model.blocks, batch, kv_dtype)
        sizes = [one.usual(longest) if asked is None else one.for_tokens(asked, longest) for one in blocks]
        each = [one.layout.states_of(min(longest, SESSION_TOKENS)) for one in blocks]
        kept = [-(-size.states // states) for size, states in zip(sizes, each, strict=True) if states]
        return cls(
            asked or longest,
            [size.slots * one.slot_bytes for size, one in zip(sizes, blocks, strict=True)],
            [size.states * one.state_bytes for size, one in zip(sizes, blocks, strict=True)],
            max(kept, default=0),
            SpanMemory.of(model.blocks, batch, kv_dtype).session_cost(longest),
        )

    @property
    def each(self) -> list[int]:
        return [kv + states for kv, states in zip(self.kv, self.states, strict=True)]


def _least_bytes(config: NodeConfig, model: ModelConfig, manifest: Mapping[str, TensorInfo]) -> list[int]:
    """What each block's weights take at least, however they are held."""
    bits = {"int8": 8, "int4": 4}.get(config.quantize)

    def held(info: TensorInfo) -> int:
        return info.nbytes if bits is None else min(info.nbytes, prod(info.shape) * bits // 8)

    return [
        max(1, sum(held(manifest[name]) for name in block_names(model, block) if name in manifest))
        for block in range(model.n_blocks)
    ]


def _too_small(
    config: NodeConfig, model: ModelConfig, weight_bytes: Sequence[int], memory: int
) -> MeasuredMachine:
    """A machine that not every block fits into: none is tried, which might take all memory there is."""
    kv_dtype = "float16" if config.kv_dtype == "auto" else config.kv_dtype
    held = _Held.of(config, model, kv_dtype)
    return MeasuredMachine(
        _shape(model, weight_bytes, held),
        memory,
        0.0,
        0.0,
        model.native_dtype,
        "no",
        kv_dtype,
        config.device,
        weight_bytes=sum(weight_bytes),
        session=held.session,
        sessions=held.sessions,
    )


def _shape(model: ModelConfig, weight_bytes: Sequence[int], held: _Held) -> ModelShape:
    """With the room of each block, all of which are taken to be equally fast."""
    n = model.n_blocks
    row_bytes, at_boundaries = model.boundaries.sizes(partial(kind_row_bytes, DEFAULT_KIND))
    return ModelShape(
        n_blocks=n,
        block_bytes=-(-sum(weight_bytes) // n),
        kv_bytes=-(-sum(held.kv) // (n * pages_for(held.context) * PAGE_TOKENS)),
        context_tokens=held.context,
        activation_bytes=row_bytes,
        row_bytes=at_boundaries,
        cuts=model.boundaries.cuts,
        rooms=tuple(weight + kept for weight, kept in zip(weight_bytes, held.each, strict=True)),
        state_bytes=-(-sum(held.states) // n),
    )


def _lean(shape: ModelShape, each: Sequence[_MeasuredKind], held: _Held) -> ModelShape | None:
    """``shape`` with as little of each block's weights in memory as may be: WEIGHTS_SHARE of it."""
    if all(kind.least_held == 1 for kind in each):
        return None
    weights = [kind.least_held * kind.weight_bytes for kind in each]
    rooms = (max(least / WEIGHTS_SHARE, least + kept) for least, kept in zip(weights, held.each, strict=True))
    return replace(shape, rooms=tuple(map(math.ceil, rooms)))


@dataclass(frozen=True, slots=True)
class _MeasuredKind:
    """One block among others of its kind: its bytes, its time for a token and for each 1000 tokens before
    it, tokens of a prompt through it."""

    weight_bytes: int
    decode_ms: float
    prefill_tokens_per_s: float
    weights: str
    kernels: str
    kv_dtype: str
    least_held: float
    context_ms: float


def _kinds(model: ModelConfig, manifest: Mapping[str, TensorInfo]) -> list[list[int]]:
    """The model's blocks, those together that cost the same: alike in settings, and in shapes and types of
    their weights. The largest kind first, and with it those beyond MOST_KINDS."""
    kinds: dict[object, list[int]] = {}
    for number, block in enumerate(model.blocks):
        names = [name for name in block_names(model, number) if name in manifest]
        held = tuple((manifest[name].shape, manifest[name].qtype) for name in names)
        kinds.setdefault((block, held), []).append(number)
    largest, *others = sorted(kinds.values(), key=len, reverse=True)
    rare = [number for blocks in others[MOST_KINDS - 1 :] for number in blocks]
    return [[*largest, *rare], *others[: MOST_KINDS - 1]]


def _measure_kind(
    config: NodeConfig,
    model: ModelConfig,
    manifest: Mapping[str, TensorInfo],
    blocks: Sequence[int],
    memory: int,
    threads: int,
    known: Mapping[int, _MeasuredKind],
) -> _MeasuredKind:
    """What one of these ``blocks`` costs, measured with made-up ones like the first. Where these read what
    another block makes, which is ``known``, that is measured with them: their time is the mean.
    """
    like = blocks[0]
    read = model.blocks[like].reads
    others = [] if read is None else [read]
    file_bytes = max(1, sum(manifest[name].nbytes for name in block_names(model, like) if name in manifest))
    most = min(len(blocks), MOST_BLOCKS)
    count = min(most, max(1, min(-(-CACHE_BYTES // file_bytes), memory // file_bytes)))
    made_up, first = [*others, *[like] * count], 0
    if model.foreign is not None:  # whose layers know their numbers
        made_up, first, count = list(range(model.n_blocks)), like, 1
    with random_checkpoint(model, manifest, made_up) as made:
        measured_blocks = len(others) + count
        span = load_backend(made, Span(first, first + measured_blocks), load_options(config), threads=threads)
        kv_dtype = kv_dtype_of(config, span)
        context = model.max_position_embeddings
        measured = measure_self(span, kv_dtype, min(context, config.kv_cache_tokens or context))
        own_bytes = span.weight_bytes - sum(known[other].weight_bytes for other in others)
        return _MeasuredKind(
            max(1, -(-own_bytes // count)),
            measured.decode_ms_per_block,
            measured.prefill_tokens_per_s * measured_blocks,
            span.weights,
            span.kernels,
            kv_dtype,
            least_held(made, first + len(others), load_options(config))
            if isinstance(span, NativeSpan)
            else 1.0,
            measured.context_ms_per_block,
        )
