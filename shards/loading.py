"""A node's blocks and a client's head on any device, by our own kernels, torch or MLX: of these backends only
the one that is chosen is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..swarm.errors import UsageError
from ..swarm.types import Span
from .checkpoint.checkpoint import Checkpoint, check_span
from .formats.tensors import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    HEAD_BIAS,
    MERGE,
    NEXT_NORMS,
    NEXT_PROJECTION,
    SIDE_EMBEDDING,
    SIDE_NORM,
    SIDE_PROJECTION,
    SPREAD,
)
from .kernels.head import NativeHead
from .kernels.linear import ActivationPrecision
from .kernels.rows import NativeNorm
from .layers.quantize import INT4_SOURCES, OWN_FORM
from .models.client_memory import HeadShape, check_room
from .models.client_part import ClientModel, Project, SideMaker, Streams
from .models.devices import INSTALL_COMPILER, require_mlx, require_torch, resolve_device
from .models.head import FinalNorm, Head, RefinedHead
from .models.load_plan import LoadOptions, LoadPlan, WeightKind, resolve
from .models.next_part import NextPart
from .models.rounding_bounds import RoundingBounds, native_rounding, torch_rounding
from .models.weight_loader import Progress, WeightLoader, check_shape
from .native.span import load_native_span, unsupported

if TYPE_CHECKING:
    from .formats.blocks.norm import NormConfig
    from .formats.config import ModelConfig, SidebandConfig
    from .formats.raw_tensor import RawTensor
    from .models.backend import SpanBackend
    from .torch.weights import TorchLoader


def load_backend(
    checkpoint: Checkpoint,
    span: Span,
    options: LoadOptions,
    progress: Progress | None = None,
    *,
    threads: int = 1,
    memory: int | None = None,
) -> SpanBackend[Any]:
    """Blocks ``span`` of the checkpoint on ``options.device``, be it torch's or MLX's.

    ``memory``: bytes that there are for weights and KV cache. Where the weights are more and our kernels
    compute, experts stay in the file, and the hottest in memory.

    ``progress(done_bytes, total_bytes, label)`` is called after each tensor, bytes being the file's.
    Raises UsageError for a span outside the model or a missing device, CheckpointError for a damaged file.
    """
    check_span(span, checkpoint.config)
    if (foreign := checkpoint.config.foreign) is not None:
        _check_foreign(options)
        from .transformers.span import load_foreign_span

        plan = resolve(options, checkpoint.config.native_dtype)
        return load_foreign_span(checkpoint, foreign, span, plan, progress, threads=threads)
    if options.device == "mlx":
        require_mlx()
        from .mlx.span import load_mlx_span

        return load_mlx_span(checkpoint, span, options, progress, threads=threads)
    plan = resolve(options, checkpoint.config.native_dtype)
    reason = None if plan.precision is None else unsupported(checkpoint, span, plan)
    if plan.precision is not None and reason is None:
        return load_native_span(checkpoint, span, plan, progress, threads=threads, memory=memory)
    _check_torch(plan, reason)
    from .torch.span import load_torch_span

    return load_torch_span(
        checkpoint, span, replace(plan, precision=None), progress, threads=threads, reason=reason
    )


def load_client_model(
    checkpoint: Checkpoint, options: LoadOptions, progress: Progress | None = None, *, threads: int = 1
) -> ClientModel:
    """``progress(done_bytes, total_bytes, label)``. UsageError: no such device; CheckpointError: bad files.

    ``quantize="auto"`` on CPU holds a 16-bit or quantized head in four or eight bits: the file's own where it
    has such, else the best tokens are made exact from the file (``head.RefinedHead``). ``threads`` compute.
    """
    config = checkpoint.config
    plan = resolve(options, config.native_dtype)
    if (foreign := config.foreign) is not None:
        _check_foreign(replace(options, kernels="auto", quantize="auto"))
        from .transformers.client import load_foreign_client

        return load_foreign_client(checkpoint, foreign, plan, progress, threads=threads)
    if plan.precision is ActivationPrecision.FAST:
        # A head reads its weights once for few rows: coarser ones gain nothing.
        plan = replace(plan, precision=ActivationPrecision.CLOSE)
    if plan.precision is not None and options.kernels == "auto":
        # Ours even where torch is a little faster: it takes 200 MB and two seconds of a client.
        plan = replace(plan, options=replace(options, kernels="native"))
    embedding = checkpoint.tensor(EMBEDDING)
    check_shape(embedding, (config.vocab_size, config.hidden_size))
    tied = config.tie_word_embeddings
    name = EMBEDDING if tied else HEAD
    raw = checkpoint.tensor(name)
    projections = [SIDE_PROJECTION] if config.sideband is not None else []
    projections += [name.format(number) for name in (SPREAD, MERGE) for number in range(config.streams - 1)]
    beside = sum(checkpoint.tensor(f"{name}.weight").nbytes for name in projections)
    if plan.packed:
        shape = HeadShape(config.vocab_size, config.hidden_size, tied, raw.qtype)
        check_room(shape, beside, quantize=options.quantize, native=plan.native(WeightKind.INT8))
    norm = _norm(checkpoint, FINAL_NORM.removesuffix(".weight"), config.final_norm, config.hidden_size)
    # What refines logits computes products alone.
    refinable = _refinable(plan) and not config.head_bias
    kind = _head_kind(raw, plan, refinable)
    errors = RoundingBounds() if refinable else None
    bias = HEAD_BIAS.removesuffix(".bias")
    wanted = ([name.removesuffix(".weight")], [config.vocab_size], config.hidden_size, kind, errors, bias)
    in_file = raw.nbytes + beside
    loader: WeightLoader | TorchLoader
    head: Head
    with_norm: Callable[[FinalNorm], Head]
    if plan.precision is not None and plan.native(plan.form([raw], kind)):
        loader = WeightLoader(checkpoint, plan, in_file, progress, threads)
        loader.label = "head"
        linear = loader.linear(*wanted)
        native = NativeHead(_native(norm), linear, threads)
        head, kernels, with_norm = native, "native", lambda norm: native.with_norm(_native(norm))
        tied_head = native if tied and raw.qtype == "Q8_0" and linear.is_int8 else None
        rounding = native_rounding(plan.precision, config.hidden_size)
    else:
        _check_torch(plan)
        from .torch.head import TorchHead
        from .torch.weights import TorchLoader

        loader = TorchLoader(checkpoint, plan, in_file, progress, threads)
        loader.label = "head"
        on_torch = TorchHead(norm, loader.linear(*wanted), plan.device, plan.dtype, threads)
        head, kernels, with_norm, tied_head = on_torch, "torch", on_torch.with_norm, None
        rounding = torch_rounding(config.hidden_size)
    side = None if config.sideband is None else _side_maker(checkpoint, config.sideband, loader)
    streams = None if config.streams == 1 else _streams(config, loader)
    held = norm.nbytes + loader.nbytes
    if errors is not None and errors.known:
        bounds = errors.bounds(rounding)
        head = RefinedHead(norm, head, raw, bounds, rounding.of_output)
        held += bounds.nbytes
    checkpoint.release()
    return ClientModel(
        *(config, embedding, norm, head, plan.device, held, loader.summary(), kernels),
        *(checkpoint.release, tied_head, side, streams, with_norm),
    )


def _native(norm: FinalNorm) -> NativeNorm:
    return NativeNorm(norm.settings, norm.weight, norm.bias)


def load_next_part(
    checkpoint: Checkpoint, client: ClientModel, options: LoadOptions, number: int = 0, *, threads: int = 1
) -> NextPart[Any]:
    """The block ``number`` of those that guess further tokens, beside a client of the same checkpoint, whose
    embedding and head it uses. UnsupportedModelError where the model has none; else as ``load_backend``."""
    whole, config = checkpoint.with_next(), checkpoint.config
    if config.next is None or not 0 <= number < config.next_blocks:
        raise UsageError(f"the model has {config.next_blocks} blocks that guess further tokens")
    at, hidden = config.n_blocks + number, config.hidden_size
    begin, options = f"model.layers.{at}.", _next_options(options, config.native_dtype)
    blocks = load_backend(whole, Span(at, at + 1), options, threads=threads)
    of_embedding, of_hidden, own = (
        _norm(whole, begin + name, config.next.norm, hidden) for name in NEXT_NORMS
    )
    raw = whole.tensor(f"{begin}{NEXT_PROJECTION}.weight")
    plan = resolve(replace(options, device=client.device), config.native_dtype)
    loader = _loader(whole, plan, raw, threads)
    project = _product(loader, begin + NEXT_PROJECTION, hidden, 2 * hidden)
    checkpoint.release()
    return NextPart(client, blocks, project, (of_embedding, of_hidden, own), client.with_norm(own))


def _next_options(options: LoadOptions, native_dtype: str) -> LoadOptions:
    """As a head is held: 16 bits in eight, since a guess may be rough, and by our kernels where they run."""
    if options.device != "cpu":
        return options
    if options.quantize == "auto" and native_dtype in ("BF16", "F16"):
        options = replace(options, quantize="int8")
    if options.kernels == "auto" and resolve(options, native_dtype).precision is not None:
        options = replace(options, kernels="native")
    return options


def _loader(
    checkpoint: Checkpoint, plan: LoadPlan, raw: RawTensor, threads: int
) -> WeightLoader | TorchLoader:
    """For the matrix ``raw``."""
    if plan.precision is not None and plan.native(plan.form([raw], WeightKind.INT8)):
        return WeightLoader(checkpoint, plan, raw.nbytes, None, threads)
    _check_torch(plan)
    from .torch.weights import TorchLoader

    return TorchLoader(checkpoint, plan, raw.nbytes, None, threads)


def _product(loader: WeightLoader | TorchLoader, name: str, rows: int, cols: int) -> Project:
    """Held as the blocks' matrices are."""
    if isinstance(loader, WeightLoader):
        return loader.linear([name], [rows], cols)
    from .torch.head import TorchProduct

    return TorchProduct(loader.linear([name], [rows], cols), loader.target)


def _streams(config: ModelConfig, loader: WeightLoader | TorchLoader) -> Streams:
    hidden, others = config.hidden_size, range(config.streams - 1)
    spread, merge = (
        [_product(loader, name.format(number), hidden, hidden) for number in others]
        for name in (SPREAD, MERGE)
    )
    return Streams(spread, merge)


def _side_maker(
    checkpoint: Checkpoint, settings: SidebandConfig, loader: WeightLoader | TorchLoader
) -> SideMaker:
    """Its embedding stays in the file."""
    config = checkpoint.config
    beside = config.n_blocks * settings.values
    embedding = checkpoint.tensor(SIDE_EMBEDDING)
    check_shape(embedding, (settings.vocab_size, beside))
    norm = _norm(checkpoint, SIDE_NORM, settings.norm, settings.values)
    return SideMaker(settings, embedding, _product(loader, SIDE_PROJECTION, beside, config.hidden_size), norm)


def _check_foreign(options: LoadOptions) -> None:
    """UsageError for what transformers' layers cannot be asked for."""
    asked = {
        "--device mlx": options.device == "mlx",
        f"--quantize {options.quantize}": options.quantize in ("int8", "int4"),
        f"--kernels {options.kernels}": options.kernels in ("native", "fast"),
        "--deterministic": options.deterministic,
    }
    for option, is_asked in asked.items():
        if is_asked:
            raise UsageError(
                f"this model runs by transformers' own layers, for which there is no {option}",
                hint="Leave the option out.",
            )


def _norm(checkpoint: Checkpoint, name: str, settings: NormConfig, size: int) -> FinalNorm:
    """Of rows of ``size`` values. ``name``: without ``.weight``."""

    def vector(part: str) -> np.ndarray:
        raw = checkpoint.tensor(f"{name}.{part}")
        check_shape(raw, (size,))
        raw.check_numbers()
        return raw.dequantize()

    return FinalNorm(
        settings,
        vector("weight") if settings.weighted else None,
        vector("bias") if settings.bias else None,
        size,
    )


def _check_torch(plan: LoadPlan, reason: str | None = None) -> None:
    """The door to torch's rooms. UsageError where torch is missing: what needs it, and what to do instead.
    ``reason``: why our kernels do not take a model."""
    if plan.options.kernels == "torch":
        require_torch("--kernels torch", "Use --kernels auto")
    elif plan.dtype != "float32":
        require_torch(f"--dtype {plan.dtype} on device {plan.device!r}", "Use --dtype auto on the CPU")
    elif reason is not None:
        require_torch(f"this model ({reason})", "Try --kernels native")
    else:
        why = f"computing without our C kernels ({plan.reason})"
        require_torch(why, f"Let them be compiled, by a compiler of yours or {INSTALL_COMPILER}")


def _head_kind(raw: RawTensor, plan: LoadPlan, refinable: bool) -> WeightKind:
    """Four bits in the file stay four; rounding to four costs KL 1.5e-2 (SmolLM2), so that is never done."""
    kind = plan.kind(raw)
    if plan.options.quantize == "auto" and kind is WeightKind.DENSE and raw.qtype != "F32":
        return WeightKind.INT8 if refinable else WeightKind.DENSE
    if kind is WeightKind.INT4:
        native = plan.native(kind) and OWN_FORM.get(raw.qtype) == kind
        return kind if native or raw.qtype in INT4_SOURCES else WeightKind.INT8
    return kind


def _refinable(plan: LoadPlan) -> bool:
    """Whether rough logits can be made exact: on the CPU, from activations that were not rounded."""
    return plan.packed and plan.dtype == "float32"


def device_memory(name: str) -> int | None:
    """Bytes that may still be taken on device ``name``; None where it has no memory of its own account and
    what the host has free is what counts."""
    kind, _, index = name.partition(":")
    if kind == "cuda":
        resolve_device(name)
        from .torch.tensors.device import memory_left as cuda_memory_left

        return cuda_memory_left(int(index or 0))
    if kind == "mlx":
        require_mlx()
        from .mlx.tensors.device import memory_left

        return memory_left()
    return None
