"""From a checkpoint's tensors to linears as a backend holds them: what all loaders share, and that of the C
kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from ...swarm.errors import CheckpointError
from ..experts.file_linear import FileLinear
from ..experts.store import ExpertStore, FileMlp
from ..kernels.experts import ExpertWeights, HeldExperts, NativeMlp
from ..kernels.linear import (
    ActivationPrecision,
    NativeLinear,
    file_form,
    native_dense,
    native_file,
    native_float8,
    native_int4,
    native_int8,
    native_int8_pieces,
    native_integers,
    native_stack,
)
from ..kernels.rows import NativeNorm
from ..layers.quantize import (
    HALVED_INT8,
    INT4_SOURCES,
    INT8_SOURCES,
    OWN_FORM,
    SHARED_SCALES,
    Int4Groups,
    Int8Groups,
    Int8Rows,
    file_float8,
    file_groups,
    file_int8_groups,
    file_integers,
    to_int4,
    to_int8_groups,
)
from .block_loading import mlp_stacks
from .load_plan import LoadPlan, WeightKind
from .rounding_bounds import RoundingBounds, RowErrors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.norm import NormConfig
    from ..formats.raw_tensor import RawTensor

    Floats = NDArray[np.float32]

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, label)``."""


_PIECE_VALUES = 1 << 20
"""This many weights are quantized at a time."""

Plan = TypeVar("Plan")


class TensorReader(Generic[Plan]):
    """Reads tensors, reports progress, and keeps count of how they ended up.

    ``plan``: how they are to be held. ``total_bytes``: what ``progress`` counts towards, bytes of the file.
    ``label``: what it is told. ``threads`` round weights. ``nbytes``: memory that is held.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        total_bytes: int = 0,
        progress: Progress | None = None,
        threads: int = 1,
    ) -> None:
        self.plan = plan
        self.nbytes = 0
        self.label = ""
        self._checkpoint = checkpoint
        self._total = total_bytes
        self._done = 0
        self._progress = progress
        self._threads = threads
        self._held: Counter[str] = Counter()

    def summary(self) -> str:
        """How the matrices are held, most used first: ``int4 (Q4_1)`` for the file's own groups, ``bf16``."""
        return " + ".join(form for form, _ in self._held.most_common())

    def _matrices(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> list[RawTensor]:
        """The named weights (without ``.weight``), checked to have ``sizes`` rows each."""
        raws = [self._checkpoint.tensor(f"{name}.weight") for name in names]
        for raw, size in zip(raws, sizes, strict=True):
            check_shape(raw, (size, cols))
        return raws

    def vector(self, name: str, *shape: int) -> Floats:
        """A tensor of that shape."""
        raw = self._checkpoint.tensor(name)
        check_shape(raw, shape)
        self._read(raw)
        return raw.dequantize()

    def _norm_weight(self, name: str, norm: NormConfig, size: int) -> Floats:
        """What a norm multiplies by (size), its offset added; ones where it has no weight."""
        if not norm.weighted:
            return np.ones(size, np.float32)
        return self.vector(f"{name}.weight", size) + np.float32(norm.offset)

    def _bias(self, names: Sequence[str], sizes: Sequence[int]) -> Floats | None:
        """Stacked biases, zeros for the weights that have none; None if no weight has one."""
        if not any(self._checkpoint.has(f"{name}.bias") for name in names):
            return None
        parts: list[Floats] = []
        for name, size in zip(names, sizes, strict=True):
            if not self._checkpoint.has(f"{name}.bias"):
                parts.append(np.zeros(size, np.float32))
                continue
            raw = self._checkpoint.tensor(f"{name}.bias")
            check_shape(raw, (size,))
            parts.append(raw.dequantize())
            self._read(raw)
        return np.concatenate(parts)

    def _count(self, form: str, raws: Sequence[RawTensor]) -> None:
        self._held[form] += sum(raw.nbytes for raw in raws)

    def _read(self, raw: RawTensor) -> None:
        """To be called for each tensor that is held."""
        raw.check_numbers()
        self._done += raw.nbytes
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), self.label)


class WeightLoader(TensorReader[LoadPlan]):
    """Holds them for the C kernels, as ``plan`` says; its ``precision`` is not None."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: LoadPlan,
        total_bytes: int = 0,
        progress: Progress | None = None,
        threads: int = 1,
        store: ExpertStore | None = None,
    ) -> None:
        """``store``: what experts are added to, in the place of reading them."""
        super().__init__(checkpoint, plan, total_bytes, progress, threads)
        self._store = store
        if plan.precision is None:
            raise ValueError("the plan is not one for the C kernels")
        self.precision: ActivationPrecision = plan.precision

    def norm(self, name: str, norm: NormConfig, size: int) -> NativeNorm:
        bias = self.vector(f"{name}.bias", size) if norm.bias else None
        made = NativeNorm(norm, self._norm_weight(name, norm, size), bias)
        self.nbytes += made.nbytes
        return made

    def linear(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        cols: int,
        kind: WeightKind | None = None,
        errors: RoundingBounds | None = None,
        bias: str = "",
    ) -> NativeLinear:
        """One linear of the named weights stacked (``sizes[i]`` rows each, without ``.weight``).

        ``kind``: as for ``LoadPlan.form``. ``errors`` learns what rounding does to each row, where the
        weights are rounded. ``bias``: of one linear, its name where it is not beside the weight.
        """
        raws = self._matrices(names, sizes, cols)
        linear = self._packed(raws, self._bias([bias] if bias else names, sizes), kind, errors)
        for raw in raws:
            self._read(raw)
        return linear

    def heads(self, name: str, heads: int, cols: int) -> list[NativeLinear]:
        raw = self._checkpoint.tensor(f"{name}.weight")
        each = raw.shape[0] // heads
        check_shape(raw, (heads * each, cols))
        parts = (
            raw.part(raw.name, (each, cols), slice(first, first + each))
            for first in range(0, heads * each, each)
        )
        linears = [self._packed([part]) for part in parts]
        self._read(raw)
        return linears

    def experts(self, prefix: str, experts: ExpertsConfig, hidden: int) -> ExpertWeights:
        mlp = experts.mlp
        each = [mlp_stacks(f"{prefix}.{number}", mlp, hidden) for number in range(experts.count)]
        if self._store is None:
            return HeldExperts(
                mlp, [NativeMlp(*(self.linear(*stack) for stack in stacks)) for stacks in each]
            )
        return self._store.add(
            mlp, [FileMlp(*(self._in_file(*stack) for stack in stacks)) for stacks in each]
        )

    def _in_file(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> FileLinear:
        raws = self._matrices(names, sizes, cols)
        linear = FileLinear(raws, self._bias(names, sizes), self._forms(raws), self.precision)
        self.nbytes += linear.nbytes
        return linear

    def _forms(self, raws: Sequence[RawTensor], kind: WeightKind | None = None) -> list[str]:
        """How each is held, which the summary then tells."""
        forms = self.plan.forms(raws, kind)
        for raw, form in zip(raws, forms, strict=True):
            self._count(f"{form} ({raw.qtype})" if OWN_FORM.get(raw.qtype) == form else form, [raw])
        return forms

    def _packed(
        self,
        raws: Sequence[RawTensor],
        bias: Floats | None = None,
        kind: WeightKind | None = None,
        errors: RoundingBounds | None = None,
    ) -> NativeLinear:
        forms = self._forms(raws, kind)
        # What is held by moving the file's bytes is one run: its parts are of any types. Others are of one.
        moved = [file_form(raw.qtype) == form for raw, form in zip(raws, forms, strict=True)]
        runs = [
            list(run)
            for _, run in groupby(
                zip(moved, forms, raws, strict=True), key=lambda each: each[0] or (each[1], each[2].qtype)
            )
        ]
        linears = [
            native_file([raw for _, _, raw in run], None, self.precision)
            if run[0][0]
            else self._decoded([raw for _, _, raw in run], run[0][1], None, errors)
            for run in runs
        ]
        linear = native_stack(linears, bias)
        self.nbytes += linear.nbytes + (0 if bias is None else bias.nbytes)
        return linear

    def _decoded(
        self, raws: Sequence[RawTensor], form: str, bias: Floats | None, errors: RoundingBounds | None
    ) -> NativeLinear:
        """Of matrices of one type."""
        qtype = raws[0].qtype
        if qtype in SHARED_SCALES and form == OWN_FORM[qtype]:
            bits = 4 if form == WeightKind.INT4 else 8
            return native_integers([file_integers(raw, bits) for raw in raws], bits, bias, self.precision)
        if form == WeightKind.INT4:
            return native_int4([int4_groups(raw, self._threads) for raw in raws], bias, self.precision)
        if form == WeightKind.FLOAT8:
            return native_float8([file_float8(raw) for raw in raws], bias)
        if form != WeightKind.INT8:
            return native_dense([raw.dequantize(form) for raw in raws], bias)
        if qtype in (*INT8_SOURCES, *HALVED_INT8):
            return native_int8([file_int8_groups(raw) for raw in raws], bias, self.precision)
        pieces = (piece for raw in raws for piece in in_pieces(to_int8_groups, raw, self._threads, errors))
        return native_int8_pieces(
            pieces, sum(raw.shape[0] for raw in raws), raws[0].cols, bias, self.precision
        )


_Parts = TypeVar("_Parts", Int4Groups, Int8Groups, Int8Rows)


def int4_groups(raw: RawTensor, threads: int) -> Int4Groups:
    """The file's own groups, or what its values are rounded to."""
    return file_groups(raw) if raw.qtype in INT4_SOURCES else whole(in_pieces(to_int4, raw, threads))


def in_pieces(
    quantize: Callable[[Floats], _Parts],
    raw: RawTensor,
    threads: int,
    errors: RoundingBounds | None = None,
) -> Iterator[_Parts]:
    """``quantize`` of the rows of ``raw``, some at a time, so that its float32 copy is never whole: one piece
    a thread. ``errors`` learns what that does to each row."""
    rows, cols = raw.shape
    step = max(1, _PIECE_VALUES // cols)
    starts = range(0, rows, step)

    def piece(start: int) -> tuple[_Parts, RowErrors | None]:
        weight = raw.dequantize_rows(slice(start, start + step))
        parts = quantize(weight)
        return parts, None if errors is None else RowErrors.of(weight, parts.dequantize())

    with ThreadPoolExecutor(threads) as workers:
        for first in range(0, len(starts), threads):
            for parts, lost in workers.map(piece, starts[first : first + threads]):
                if errors is not None and lost is not None:
                    errors.add(lost)
                yield parts


def whole(pieces: Iterable[_Parts]) -> _Parts:
    """The pieces put together."""
    held = list(pieces)
    return type(held[0])(*(np.concatenate(arrays) for arrays in zip(*held, strict=True)))


def check_shape(raw: RawTensor, shape: tuple[int, ...]) -> None:
    if tuple(raw.shape) != shape:
        raise CheckpointError(
            f"tensor {raw.name} has shape {tuple(raw.shape)}, the configuration says {shape}",
            hint="The file is damaged or its configuration belongs to another model.",
        )
