"""What the client holds of a model: embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..swarm.errors import UsageError
from .autoselect import Kind, LoadOptions, Plan, resolve
from .head import DenseHead, RefinedHead
from .manifest import EMBEDDING, FINAL_NORM, HEAD
from .norm import RmsNorm
from .weights import Progress, WeightLoader, check_shape

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .config import ModelConfig
    from .raw_tensor import RawTensor


class ClientModel:
    """``dtype``: what ``embed`` gives. ``weight_bytes``: memory the weights take; ``weights``: how held.

    The embedding stays in the file: a prompt's rows are read from the memory map, so the checkpoint must stay
    open for as long as this is used.
    """

    __slots__ = ("_embedding", "_head", "_norm", "config", "device", "dtype", "weight_bytes", "weights")

    def __init__(
        self,
        config: ModelConfig,
        embedding: RawTensor,
        norm: RmsNorm,
        head: DenseHead | RefinedHead,
        plan: Plan,
        weight_bytes: int,
        weights: str,
    ) -> None:
        self.config = config
        self.device = plan.device
        self.dtype = plan.dtype
        self.weight_bytes = weight_bytes
        self.weights = weights
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
        return self._embedding.dequantize_rows(index, torch.float32).to(self.device, self.dtype)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last block, (T, hidden) → (T, vocab) float32."""
        return self._head(self._norm(hidden.to(self.device, self.dtype)))


def load_client_model(
    checkpoint: Checkpoint, options: LoadOptions, progress: Progress | None = None
) -> ClientModel:
    """``progress(done_bytes, total_bytes, label)``. UsageError: no such device; CheckpointError: bad files.

    ``quantize="auto"`` on CPU holds a 16-bit or quantized head as int8, and refines the best tokens from the
    file.
    """
    config = checkpoint.config
    plan = resolve(options, config.native_dtype)
    embedding = checkpoint.tensor(EMBEDDING)
    check_shape(embedding, (config.vocab_size, config.hidden_size))
    tied = config.tie_word_embeddings or not checkpoint.has(HEAD)
    raw = embedding if tied else checkpoint.tensor(HEAD)
    loader = WeightLoader(checkpoint, plan, raw.nbytes + checkpoint.tensor(FINAL_NORM).nbytes, progress)
    loader.label = "head"
    kind = _head_kind(raw, plan)
    with torch.inference_mode():
        norm = loader.norm(FINAL_NORM, config)
        name = (EMBEDDING if tied else HEAD).removesuffix(".weight")
        linear = loader.linear([name], [config.vocab_size], config.hidden_size, kind)
    refined = kind is not Kind.DENSE and plan.packed and plan.dtype == torch.float32
    head = RefinedHead(linear, raw) if refined else DenseHead(linear)
    checkpoint.release()
    return ClientModel(config, embedding, norm, head, plan, loader.nbytes, loader.summary())


def _head_kind(raw: RawTensor, plan: Plan) -> Kind:
    if plan.options.quantize == "auto" and plan.packed and raw.qtype not in ("F32", "F16"):
        return Kind.INT8 if plan.dtype == torch.float32 else Kind.DENSE
    return plan.kind(raw)
