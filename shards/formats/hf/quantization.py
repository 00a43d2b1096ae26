"""What a ``config.json`` says of how its weights are quantized; we read what MLX wrote, and plain weights."""

from __future__ import annotations

from ....swarm.errors import UnsupportedModelError
from ..fields import Fields
from ..shown import shown


def check_quantization(read: Fields) -> None:
    """UnsupportedModelError for weights that cannot be read as they lie in the file.

    Bits and groups of MLX's matrices are not taken from here: the tensors' shapes say them.
    """
    by_mlx = read.section("quantization")
    other = read.section("quantization_config")
    method = None if other is None else other.optional_text("quant_method")
    # MLX writes its settings twice, the second time under the name that transformers reads.
    if other is not None and (by_mlx is None or method not in (None, "mlx", "affine")):
        raise UnsupportedModelError(
            f"checkpoints quantized with {shown(method)} are not supported",
            hint="Use the unquantized checkpoint, one quantized by MLX, or a GGUF file.",
        )
    for settings in filter(None, (by_mlx, other)):
        for part in (settings, *(inner for _, inner in settings.inner())):
            _check_affine(part)


def _check_affine(part: Fields) -> None:
    """The modes' tensors look alike, so the name alone tells them apart."""
    for key in ("bits", "group_size"):
        part.optional_integer(key, most=1024)
    mode = part.optional_text("mode")
    if mode not in (None, "affine"):
        raise UnsupportedModelError(
            f"checkpoints quantized by MLX in mode {shown(mode)} are not supported",
            hint="Those in mode affine, MLX's default, are.",
        )
