"""A whole span as one call into C (``csrc/block.c``), for float32 activations on the CPU.

Everything that does not change is laid out once; a call passes pointers to the rows, the slices and the KV
memory. The GIL is released while it computes. A row's result is the same bits in any batch, cut into any
chunks, on any number of threads (but for "dynamic" rope, which is defined by where chunks end).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ...swarm.codecs.codec import MAX_MAGNITUDE
from ...swarm.errors import LocalProtocolError, UsageError
from ...swarm.types import Span
from ..checkpoint.checkpoint import Checkpoint
from ..experts.file_linear import can_stay, is_packable
from ..experts.store import ExpertStore
from ..formats.blocks.block import needs_torch
from ..kernels.bench import PRECISION_NAMES
from ..kernels.library import ThreadPool, address, library
from ..kernels.pages import ChoiceMemory, SliceArray, kv_struct, states_struct
from ..kernels.rotations import RotationArray
from ..layers.kv_pool import BatchSlice, KvPool, kv_shapes, resolve_kv_dtype
from ..layers.memory import zeros
from ..layers.rope import Rope
from ..layers.state_pool import StatePool, state_shapes
from ..models.block_loading import block_stacks, bytes_in_file, load_block
from ..models.load_plan import LoadOptions, LoadPlan, resolve
from ..models.sideband import passed_on, residual_of
from ..models.weight_loader import Progress, WeightLoader
from .block import NativeBlock, NativeWeights, SnBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.config import ModelConfig
    from ..formats.raw_tensor import RawTensor

    Floats = NDArray[np.float32]


WEIGHTS_SHARE = 0.75
"""This part of the memory that is allowed goes to weights where not all fit; the KV cache needs the rest."""
LEAST_EXPERTS = 0.25
"""A node that plans to leave experts in the file plans to hold this part of them at least: with fewer, most
tokens wait for the disk."""


class SnSpan(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.POINTER(SnBlock)),
        ("first_block", ctypes.c_int32),
        ("n_blocks", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
    )


class NativeSpan:
    """The ``SpanBackend`` of the C kernels: ``blocks`` of ``span``, for which ``unsupported`` gave None."""

    device = "cpu"
    limit = MAX_MAGNITUDE
    mixes = False
    any_thread = True

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        blocks: Sequence[NativeWeights],
        threads: int = 1,
        *,
        weights: str = "",
        weight_bytes: int = 0,
        kernels: str = "native",
        rowwise: bool = False,
        store: ExpertStore | None = None,
    ) -> None:
        """``threads`` compute, the caller's included. ``rowwise``: as ``Rope``'s. ``store``: of the experts,
        started."""
        self.store = store
        self.config, self.span = config, span
        self.weights, self.weight_bytes, self.kernels = weights, weight_bytes, kernels
        settings = config.blocks[span.start : span.end]
        ropes = list(dict.fromkeys(block.rope for block in settings if block.rope))
        numbers = {None: -1} | {rope: number for number, rope in enumerate(ropes)}
        self._kv, self._states = kv_shapes(settings), state_shapes(settings)
        tops = [config.seen_tokens(block) for block in range(span.start, span.end)]
        self._blocks = tuple(
            NativeBlock(block, held, config.hidden_size, numbers[block.rope], top)
            for block, held, top in zip(settings, blocks, tops, strict=True)
        )
        self._choice = ChoiceMemory(max(tops), threads) if any(tops) else None
        for block, following in pairwise(self._blocks) if store is not None else ():
            if block.experts is not None and following.experts is not None:
                block.experts.precede(following.experts)
        self._c_blocks = (SnBlock * len(blocks))(*(block.struct for block in self._blocks))
        self._c_span = SnSpan(self._c_blocks, span.start, len(span), config.hidden_size)
        functions = library()
        functions.sn_span_scratch.restype = ctypes.c_int64
        self._threads = ThreadPool(threads)
        self._scratch = zeros(
            functions.sn_span_scratch(ctypes.byref(self._c_span), ctypes.c_int32(threads)), np.uint8
        )
        self._forward = functions.sn_span_forward
        self._forward.restype = None
        self._forward.argtypes = (
            ctypes.POINTER(SnSpan),
            ctypes.c_void_p,  # pool
            ctypes.c_int32,  # first block
            ctypes.c_int32,  # end block
            ctypes.c_void_p,  # x
            ctypes.c_int64,  # rows
            ctypes.c_void_p,  # beside
            ctypes.c_int64,  # floats of a row of it
            ctypes.c_void_p,  # slices
            ctypes.c_void_p,  # rotations
            ctypes.c_int32,  # slices
            ctypes.c_void_p,  # kv
            ctypes.c_void_p,  # states
            ctypes.c_void_p,  # choice
            ctypes.c_void_p,  # scratch
        )
        self._states_fit = functions.sn_states_fit
        self._states_fit.argtypes = (
            ctypes.POINTER(SnSpan),
            ctypes.c_int32,  # first block
            ctypes.c_int32,  # end block
            ctypes.c_void_p,  # slices
            ctypes.c_int32,  # slices
            ctypes.c_int64,  # slots
        )
        self._slices = SliceArray()
        self._rotations = RotationArray([Rope(rope, rowwise=rowwise) for rope in ropes])

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        return resolve_kv_dtype(wanted, "float32", exact)

    def new_pool(self, n_slots: int, kv_dtype: str, n_states: int = 0) -> KvPool:
        return KvPool(n_slots, self._kv, kv_dtype, StatePool(n_states, self._states))

    def use_threads(self, threads: int) -> None:
        self._threads.width = threads

    def forward(
        self, x: Floats, slices: Sequence[BatchSlice], pool: KvPool, span: Span | None = None
    ) -> Floats:
        """See ``SpanBackend``. What a page holds beyond a slice's end is never read."""
        span = self.span if span is None else span
        if not self.span.covers(span):
            raise UsageError(f"blocks {span} are not within {self.span}")
        if self.config.blocks[span.start].index_of is not None:
            raise LocalProtocolError(f"no indexer before block {span.start} has chosen what it sees")
        rows = residual_of(self.config, span, x)  # which becomes the blocks' output
        x = np.ascontiguousarray(x, np.float32)
        if not self._kv <= pool.shapes:
            raise LocalProtocolError(f"KV memory for {pool.shapes}: this model has {self._kv}")
        if not self._states <= pool.states.shapes:
            raise LocalProtocolError(f"states of {pool.states.shapes}: this model has {self._states}")
        self._slices.fill(slices, len(rows), span)
        states = None
        if self._states:
            self._check_states(slices, pool, span)
            states = ctypes.byref(states_struct(pool))
        self._rotations.fill(slices)
        self._forward(
            self._c_span,
            self._threads.handle,
            span.start,
            span.end,
            address(rows),
            len(rows),
            address(x) + self._c_span.hidden * x.itemsize,
            x.shape[1],
            self._slices.array,
            self._rotations.array,
            len(slices),
            ctypes.byref(kv_struct(pool)),
            states,
            None if self._choice is None else ctypes.byref(self._choice.of(len(rows), slices)),
            address(self._scratch),
        )
        if self.store is not None:
            self.store.check()
        return passed_on(self.config, span, x, rows)

    def _check_states(self, slices: Sequence[BatchSlice], pool: KvPool, span: Span) -> None:
        """Of ``slices``, with which ``self._slices`` is filled."""
        slots = pool.states.n_slots
        wrong = self._states_fit(self._c_span, span.start, span.end, self._slices.array, len(slices), slots)
        if wrong < 0:
            return
        part = slices[wrong]
        if part.states is None:
            raise LocalProtocolError(f"a slice without a state for blocks {span}")
        raise LocalProtocolError(
            f"a slice of blocks {span} without the state before position {part.start}, or with one beyond "
            f"the {slots} slots"
        )


def unsupported(checkpoint: Checkpoint, span: Span, plan: LoadPlan) -> str | None:
    """Why ``load_native_span`` cannot or should not load these blocks; None if it should."""
    config = checkpoint.config
    if any(needs_torch(block) for block in config.blocks[span.start : span.end]):
        return "blocks that only torch computes"
    native = total = 0
    for block in range(span.start, span.end):
        for stack, count in block_stacks(config, block):
            raws = [checkpoint.tensor(f"{name}.weight") for name in stack.names]
            for raw, form in zip(raws, plan.forms(raws), strict=True):
                native += count * raw.nbytes if plan.native(form) else 0
                total += count * raw.nbytes
    return None if 2 * native > total else "torch's are faster here"


def load_native_span(
    checkpoint: Checkpoint,
    span: Span,
    plan: LoadPlan,
    progress: Progress | None = None,
    *,
    threads: int = 1,
    memory: int | None = None,
) -> NativeSpan:
    """As ``loading.load_backend``, for a plan that ``unsupported`` has nothing against."""
    config, in_file = checkpoint.config, bytes_in_file(checkpoint, span)
    is_short = memory is not None and in_file > memory and _experts_may_stay(checkpoint, span, plan)
    store = ExpertStore() if is_short else None
    loader = WeightLoader(checkpoint, plan, in_file, progress, threads, store)
    blocks: list[NativeWeights] = []
    for block in range(span.start, span.end):
        blocks.append(load_block(loader, config, block))
        checkpoint.release()
    weights = loader.summary()
    if store is not None and memory is not None:
        store.start(int(memory * WEIGHTS_SHARE) - loader.nbytes)
        weights += f", {100 * store.slots // store.count} % of experts"
    return NativeSpan(
        config,
        span,
        blocks,
        threads,
        weights=weights,
        weight_bytes=loader.nbytes + (0 if store is None else store.nbytes),
        kernels=f"native {PRECISION_NAMES[loader.precision]}",
        rowwise=plan.options.deterministic,
        store=store,
    )


def _experts_may_stay(checkpoint: Checkpoint, span: Span, plan: LoadPlan) -> bool:
    """Whether there are experts, all of them in a form that is read from the file as it is needed."""
    stacks = [each for block in range(span.start, span.end) for each in _expert_stacks(checkpoint, block)]
    precision = plan.precision
    if precision is None or not stacks:
        return False
    return all(can_stay(raws, plan.forms(raws), precision) for raws, _ in stacks)


def _expert_stacks(checkpoint: Checkpoint, block: int) -> list[tuple[list[RawTensor], int]]:
    """The matrices of one expert of a block that become one product, and how many experts have such."""
    return [
        ([checkpoint.tensor(f"{name}.weight") for name in stack.names], count)
        for stack, count in block_stacks(checkpoint.config, block)
        if ".mlp.experts." in stack.names[0]
    ]


def least_held(checkpoint: Checkpoint, block: int, options: LoadOptions) -> float:
    """The part of a block's weights that memory holds at least: 1 where experts cannot stay in the file. The
    checkpoint may be a made-up one."""
    plan = resolve(options, checkpoint.config.native_dtype)
    stacks = _expert_stacks(checkpoint, block)
    if plan.precision is None or not all(is_packable(raws, plan.forms(raws)) for raws, _ in stacks):
        return 1.0
    experts = sum(count * sum(raw.nbytes for raw in raws) for raws, count in stacks)
    return 1.0 - (1 - LEAST_EXPERTS) * experts / bytes_in_file(checkpoint, Span(block, block + 1))
