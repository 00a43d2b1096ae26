"""The blocks of a span on any device: torch's with our own kernels, or MLX's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .models.devices import require_mlx, resolve_device

if TYPE_CHECKING:
    from ..swarm.types import Span
    from .checkpoint.checkpoint import Checkpoint
    from .models.backend import SpanBackend
    from .models.load_plan import LoadOptions
    from .models.weight_loader import Progress


def load_backend(
    checkpoint: Checkpoint,
    span: Span,
    options: LoadOptions,
    progress: Progress | None = None,
    *,
    threads: int = 1,
) -> SpanBackend[Any]:
    """Blocks ``span`` of the checkpoint on ``options.device``, be it torch's or MLX's.

    ``progress(done_bytes, total_bytes, label)`` is called after each tensor, bytes being the file's.
    Raises UsageError for a span outside the model or a missing device, CheckpointError for a damaged file.
    """
    if options.device == "mlx":
        require_mlx()
        from .mlx.span import load_mlx_span  # here: mlx is installed on Apple Silicon, and for tests

        return load_mlx_span(checkpoint, span, options, progress)
    from .models.span import load_span  # here: it imports torch

    return load_span(checkpoint, span, options, progress, threads=threads)


def device_memory(name: str) -> int | None:
    """Bytes that may still be taken on device ``name``; None where it has no memory of its own account and
    what the host has free is what counts."""
    kind, _, index = name.partition(":")
    if kind == "cuda":
        resolve_device(name)
        import torch

        return int(torch.cuda.mem_get_info(int(index or 0))[0])
    if kind == "mlx":
        require_mlx()
        from .mlx.device import memory_left

        return memory_left()
    return None
