"""What people ask of a model that they do not compute: of what kind it is, how large, how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from ..shards.formats.advice.pooling import Pooling
from ..shards.formats.advice.sampling import NO_ADVICE, SamplingAdvice

if TYPE_CHECKING:
    from ..shards.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """``family``: transformers' ``model_type``. ``weights``: their main type, such as ``Q4_1``. ``nbytes``:
    of all tensors. Empty and 0 where it is not known. ``sampling``: by its makers' advice. ``pooling``: of a
    model that is one for embeddings."""

    family: str = ""
    weights: str = ""
    hidden_size: int = 0
    parameters: int = 0
    nbytes: int = 0
    sampling: SamplingAdvice = NO_ADVICE
    pooling: Pooling | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelFacts:
        config, tensors = checkpoint.config, checkpoint.manifest.values()
        return cls(
            family=config.family,
            weights=config.native_dtype,
            hidden_size=config.hidden_size,
            parameters=sum(prod(tensor.shape) for tensor in tensors),
            nbytes=sum(tensor.nbytes for tensor in tensors),
            sampling=config.sampling,
            pooling=config.pooling,
        )


UNKNOWN = ModelFacts()
