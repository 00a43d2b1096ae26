"""What the client holds of a model: embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...swarm.errors import UsageError
from ..formats.tensors import EMBEDDING, FINAL_NORM, HEAD
from ..kernels.head import NativeHead
from ..kernels.linear import ActivationPrecision, NativeLinear
from ..layers.quantize import INT4_SOURCES
from .client_memory import HeadShape, check_room
from .head import FinalNorm, Head, RefinedHead
from .load_plan import LoadOptions, LoadPlan, WeightKind, resolve
from .rounding_bounds import RoundingBounds, native_rounding, torch_rounding
from .weight_loader import Progress, WeightLoader, check_shape

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.config import ModelConfig
    from ..formats.raw_tensor import RawTensor


HELD_ROWS = 64
"""After this many rows of the embedding, their pages of the file are let go: the kernel maps 64 KiB around
each row, so that a long chat would come to hold all of the embedding."""


class ClientModel:
    """``device``: where the head is. ``weight_bytes``: memory the weights take; ``weights``: how held;
    ``kernels``: what computes the head ("native", "torch"). Rows come and go as float32 arrays.

    The embedding stays in the file: a prompt's rows are read from the memory map, so the checkpoint must stay
    open for as long as this is used.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: RawTensor,
        norm: FinalNorm,
        head: Head,
        device: str,
        weight_bytes: int,
        weights: str,
        kernels: str,
        release: Callable[[], None],
        tied: NativeHead | None = None,
    ) -> None:
        """``release`` lets go of the pages of the file that were read. ``tied`` holds the values of the
        embedding in 8 bits: a token that was just chosen is not looked up in the file."""
        self.config = config
        self.device = device
        self.weight_bytes = weight_bytes
        self.weights = weights
        self.kernels = kernels
        self._embedding = embedding
        self._norm = norm
        self._head = head
        self._release = release
        self._rows_read = 0
        self._tied = tied

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """T token ids → (T, hidden) float32. UsageError for an id outside the vocabulary."""
        if self._tied is not None and len(ids) == 1 and 0 <= ids[0] < self.config.vocab_size:
            return self._tied.int8_row(int(ids[0]))
        index = np.asarray(ids, dtype=np.int64)
        if not len(index):
            return np.empty((0, self.config.hidden_size), np.float32)
        if not 0 <= index.min() <= index.max() < self.config.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.config.vocab_size - 1}")
        rows = self._embedding.dequantize_rows(index)
        self._rows_read += len(rows)
        if self._rows_read > HELD_ROWS:
            self._rows_read = 0
            self._release()
        return rows

    def final_norm(self, hidden: np.ndarray) -> np.ndarray:
        """What the head multiplies: hidden states after the last block, (T, hidden) → (T, hidden)."""
        return self._norm(hidden)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Hidden states after the last block, (T, hidden) → (T, vocab) float32. From any thread."""
        return self._head(hidden)


def load_client_model(
    checkpoint: Checkpoint, options: LoadOptions, progress: Progress | None = None, *, threads: int = 1
) -> ClientModel:
    """``progress(done_bytes, total_bytes, label)``. UsageError: no such device; CheckpointError: bad files.

    ``quantize="auto"`` on CPU holds a 16-bit or quantized head in four or eight bits: the file's own where it
    has such, else the best tokens are made exact from the file (``head.RefinedHead``). ``threads`` compute in
    the native kernels.
    """
    config = checkpoint.config
    plan = resolve(options, config.native_dtype)
    if (
        plan.precision is ActivationPrecision.FAST
    ):  # a head reads its weights once for few rows: coarser ones gain nothing
        plan = replace(plan, precision=ActivationPrecision.CLOSE)
    embedding = checkpoint.tensor(EMBEDDING)
    check_shape(embedding, (config.vocab_size, config.hidden_size))
    tied = config.tie_word_embeddings
    raw = embedding if tied else checkpoint.tensor(HEAD)
    if plan.device.type == "cpu":
        shape = HeadShape(config.vocab_size, config.hidden_size, tied, raw.qtype)
        check_room(shape, quantize=options.quantize, native=plan.native(WeightKind.INT8))
    weight = checkpoint.tensor(FINAL_NORM)
    check_shape(weight, (config.hidden_size,))
    norm = FinalNorm(weight.dequantize(), config.rms_norm_eps)
    loader = WeightLoader(checkpoint, plan, raw.nbytes, progress)
    loader.label = "head"
    name = (EMBEDDING if tied else HEAD).removesuffix(".weight")
    errors = RoundingBounds() if _refinable(plan) else None
    linear = loader.linear([name], [config.vocab_size], config.hidden_size, _head_kind(raw, plan), errors)
    head: Head
    tied_head = None
    if isinstance(linear, NativeLinear):
        native = NativeHead(norm.weight, norm.eps, linear, threads)
        head, kernels = native, "native"
        if tied and raw.qtype == "Q8_0" and linear.is_int8:
            tied_head = native
    else:
        from .torch_head import TorchHead

        head, kernels = TorchHead(norm, linear, plan.device, plan.dtype, threads), "torch"
    held = norm.weight.nbytes + loader.nbytes
    if errors is not None and errors.known:
        rounding = torch_rounding(config.hidden_size)
        if kernels == "native":
            rounding = native_rounding(plan.precision or ActivationPrecision.FAST, config.hidden_size)
        bounds = errors.bounds(rounding)
        head = RefinedHead(norm, head, raw, bounds, rounding.of_output)
        held += bounds.nbytes
    checkpoint.release()
    return ClientModel(
        *(config, embedding, norm, head, str(plan.device), held, loader.summary(), kernels),
        *(checkpoint.release, tied_head),
    )


def _head_kind(raw: RawTensor, plan: LoadPlan) -> WeightKind:
    """Four bits in the file stay four; rounding to four costs KL 1.5e-2 (SmolLM2), so that is never done."""
    kind = plan.kind(raw)
    if plan.options.quantize == "auto" and kind is WeightKind.DENSE and raw.qtype != "F32":
        return WeightKind.INT8 if _refinable(plan) else WeightKind.DENSE
    if kind is WeightKind.INT4 and raw.qtype not in INT4_SOURCES:
        return WeightKind.INT8
    return kind


def _refinable(plan: LoadPlan) -> bool:
    """Whether rough logits can be made exact: on the CPU, from activations that were not rounded."""
    return plan.packed and str(plan.dtype).removeprefix("torch.") == "float32"
