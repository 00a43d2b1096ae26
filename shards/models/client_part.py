"""What the client holds of a model: embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...swarm.errors import UsageError
from ..formats.tensors import EMBEDDING, FINAL_NORM, HEAD
from ..kernels.head import NativeHead
from ..kernels.linear import ActivationPrecision, NativeLinear
from ..layers.norm import RmsNorm
from ..layers.quantize import INT4_SOURCES
from .client_memory import HeadShape, check_room
from .head import DenseHead, Head, RefinedHead
from .load_plan import LoadOptions, LoadPlan, WeightKind, resolve
from .rounding_bounds import RoundingBounds, native_rounding, torch_rounding
from .weight_loader import Progress, WeightLoader, check_shape

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.config import ModelConfig
    from ..formats.raw_tensor import RawTensor


class ClientModel:
    """``dtype``: what ``embed`` gives. ``weight_bytes``: memory the weights take; ``weights``: how held;
    ``kernels``: what computes the head ("native", "torch").

    The embedding stays in the file: a prompt's rows are read from the memory map, so the checkpoint must stay
    open for as long as this is used.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: RawTensor,
        norm: RmsNorm,
        head: Head,
        plan: LoadPlan,
        weight_bytes: int,
        weights: str,
        kernels: str = "torch",
    ) -> None:
        self.config = config
        self.device = plan.device
        self.dtype = plan.dtype
        self.weight_bytes = weight_bytes
        self.weights = weights
        self.kernels = kernels
        self._embedding = embedding
        self._norm = norm
        self._head = head

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """T token ids → (T, hidden). UsageError for an id outside the vocabulary."""
        index = torch.as_tensor(ids, dtype=torch.int64).flatten()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.config.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.config.vocab_size - 1}")
        if not len(index):
            return torch.empty((0, self.config.hidden_size), dtype=self.dtype, device=self.device)
        return torch.from_numpy(self._embedding.dequantize_rows(index.numpy())).to(self.device, self.dtype)

    @torch.inference_mode()
    def final_norm(self, hidden: Tensor) -> Tensor:
        """What the head multiplies: hidden states after the last block, (T, hidden) → (T, hidden) float32."""
        return self._norm(hidden.to(self.device, self.dtype)).float()

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last block, (T, hidden) → (T, vocab) float32. From any thread."""
        return self._head(hidden.to(self.device, self.dtype))


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
    loader = WeightLoader(checkpoint, plan, raw.nbytes + checkpoint.tensor(FINAL_NORM).nbytes, progress)
    loader.label = "head"
    kind = _head_kind(raw, plan)
    with torch.inference_mode():
        norm = loader.norm(FINAL_NORM, config)
        name = (EMBEDDING if tied else HEAD).removesuffix(".weight")
        errors = RoundingBounds() if plan.packed and plan.dtype == torch.float32 else None
        linear = loader.linear([name], [config.vocab_size], config.hidden_size, kind, errors)
    head: Head
    if isinstance(linear, NativeLinear):
        head, kernels = NativeHead(norm, linear, threads), "native"
    else:
        head, kernels = DenseHead(norm, linear), "torch"
    held = loader.nbytes
    if errors is not None and errors.known:
        rounding = torch_rounding(config.hidden_size)
        if kernels == "native":
            rounding = native_rounding(plan.precision or ActivationPrecision.FAST, config.hidden_size)
        bounds = errors.bounds(rounding)
        head = RefinedHead(norm, head, raw, bounds, rounding.of_output)
        held += bounds.nbytes
    checkpoint.release()
    return ClientModel(config, embedding, norm, head, plan, held, loader.summary(), kernels)


def _head_kind(raw: RawTensor, plan: LoadPlan) -> WeightKind:
    """Four bits in the file stay four; rounding to four costs KL 1.5e-2 (SmolLM2), so that is never done."""
    kind = plan.kind(raw)
    if plan.options.quantize == "auto" and kind is WeightKind.DENSE and raw.qtype != "F32":
        return WeightKind.INT8 if plan.packed and plan.dtype == torch.float32 else WeightKind.DENSE
    if kind is WeightKind.INT4 and raw.qtype not in INT4_SOURCES:
        return WeightKind.INT8
    return kind
