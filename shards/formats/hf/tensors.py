"""The tensors of a HuggingFace checkpoint as its configuration describes them."""

from __future__ import annotations

from ..config import ModelConfig
from ..tensors import TensorSource, check_manifest, with_own_head
from .mlx_affine import with_affine


def checked_tensors(
    config: ModelConfig, source: TensorSource, where: str
) -> tuple[ModelConfig, TensorSource]:
    """The configuration, with what only the tensors tell, and all of the model's tensors, those that MLX has
    quantized put together. CheckpointError, UnsupportedModelError: see ``check_manifest``."""
    config = with_own_head(config, source.manifest)
    source = with_affine(source, config, where)
    check_manifest(source.manifest, config, where)
    return config, source
