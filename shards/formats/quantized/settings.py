"""What a config.json says of quantized weights: every key is read, known to change nothing, or refused.

Most of it is how they were made. Names and patterns of modules that were left out are not matched with
anything: whether a matrix is quantized, its own tensors say. What would be done to activations
(``input_activations``, ``activation_scheme``, ``llm_int8_threshold``, ``kv_cache_scheme``) is not done: we
compute them at least as exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ....swarm.errors import UnsupportedModelError
from ..qtypes import Quantization, Scheme
from ..values.bounds import MAX_WIDTH
from ..values.fields import Fields
from ..values.shown import shown

_HINT = "Use the unquantized checkpoint, one quantized in another way, or a GGUF file."
_METHOD = ("quant_method", "quant_type", "quantization_method", "method")
_LEFT_OUT = ("modules_to_not_convert", "modules_to_convert", "ignored_layers", "ignore")
_MAKING = frozenset(
    [*_METHOD, *_LEFT_OUT, "damp_percent", "damp_auto_increment", "static_groups", "true_sequential"]
    + ["model_name_or_path", "model_file_base_name", "meta", "dataset", "tokenizer", "batch_size"]
    + ["pad_token_id", "block_name_to_quantize", "module_name_preceding_first_block", "max_input_length"]
    + ["modules_in_block_to_quantize", "cache_block_outputs", "model_seqlen", "use_cuda_fp16", "use_exllama"]
    + ["disable_exllama", "exllama_config", "backend", "act_group_aware", "lm_head", "mse", "telemetry"]
    + ["pack_impl", "device", "fallback", "hessian", "gptaq", "foem", "offload_to_disk", "v2", "v2_alpha"]
    + ["offload_to_disk_path", "parallel_packing", "failsafe", "dynamic", "do_fuse", "fuse_max_seq_len"]
    + ["modules_to_fuse", "nsamples", "seqlen", "iters", "lr", "minmax_lr", "enable_quanted_input"]
    + ["enable_minmax_tuning", "scale_dtype", "autoround_version", "data_type", "low_gpu_mem_usage", "amp"]
    + ["calib_data", "calib_dataset", "split", "text_column", "duo_scaling", "apply_clip"]
    + ["moe", "process"]
)
"""Keys of GPTQ's and AWQ's writers that say how weights were found, or with what kernels to compute."""
_BITSANDBYTES = frozenset(
    [*_METHOD, "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_threshold"]
    + ["llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight"]
    + ["bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type"]
    + ["bnb_4bit_use_double_quant"]
)
_FLOAT8 = frozenset([*_METHOD, *_LEFT_OUT, "activation_scheme", "activation_scale_ub", "dequantize"])
_COMPRESSED = frozenset(
    [*_METHOD, *_LEFT_OUT, "quantization_status", "kv_cache_scheme", "global_compression_ratio"]
    + ["run_compressed", "dequantize", "use_optimized_inference", "version", "packed_modules_mapping"]
    + ["moe_sparsity_config"]
)
_WEIGHTS = frozenset(["dynamic", "actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"])
_COMPRESSED_FORMATS = (
    *("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"),
    *("mxfp4-pack-quantized", "nvfp4-pack-quantized", "mxfp8-quantized"),
)


def quantization(read: Fields) -> Quantization | None:
    """What config.json says; None where it says nothing. UnsupportedModelError for a way to quantize that we
    cannot read, CheckpointError for values that cannot be."""
    by_mlx = read.section("quantization")
    name = "quantization_config" if read.section("quantization_config") else "compression_config"
    other = read.section(name)
    method = None if other is None else other.optional_text("quant_method")
    for settings in filter(None, (by_mlx, other if method in (None, "mlx", "affine") else None)):
        for part in (settings, *(inner for _, inner in settings.inner())):
            _check_affine(part)
    # MLX writes its settings twice, the second time under the name that transformers reads.
    if other is None or (by_mlx is not None and method in (None, "mlx", "affine")):
        return None
    if method is None:
        raise UnsupportedModelError(
            f"{other.where} has no quant_method: how the weights are quantized is not told",
            hint=f'Add it, for example "quant_method": "gptq". Supported: {", ".join(_READERS)}.',
        )
    reader = _READERS.get(method)
    if reader is None:
        raise UnsupportedModelError(
            f"{other.where}: checkpoints quantized with {shown(method)} are not supported",
            hint=f"Supported: {', '.join(_READERS)}, MLX, and GGUF files.",
        )
    return reader(other)


def _check_affine(part: Fields) -> None:
    """The modes' tensors look alike, so the name alone tells them apart."""
    for key in ("bits", "group_size"):
        part.optional_integer(key, most=1024)
    mode = part.optional_text("mode")
    if mode not in (None, "affine"):
        raise UnsupportedModelError(
            f"{part.where}: checkpoints quantized by MLX in mode {shown(mode)} are not supported",
            hint="Those in mode affine, MLX's default, are.",
        )


def _gptq(read: Fields) -> Quantization:
    form = _text(read, ("checkpoint_format", "format"), "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise _refused(read, "checkpoint_format", f"GPTQ in the format {shown(form)}")
    _only(read, "pack_dtype", ("int32", "torch.int32", None))
    for key, meaning in (
        ("is_marlin_format", "GPTQ in Marlin's order"),
        ("is_bitblas_format", "GPTQ in BitBLAS's order"),
        ("rotation", "GPTQ with rotated activations"),
        ("adapter", "GPTQ with an adapter beside it"),
    ):
        _only(read, key, (None, False, "", {}), meaning)
    symmetric = read.flag("sym", True)
    mixed = read.is_given("desc_act") and read.flag("desc_act")
    schemes = _schemes(read, (2, 3, 4, 8))
    _refuse_unread(read, _MAKING)
    offset = 1 if form == "gptq" else 0
    return Quantization("gptq", schemes, zero_offset=offset, symmetric=symmetric, mixed=mixed)


def _awq(read: Fields) -> Quantization:
    version = _text(read, ("version", "format"), "gemm")
    if version.lower() not in ("gemm", "awqversion.gemm"):
        raise _refused(read, "version", f"AWQ in the version {shown(version)}")
    for key in ("zero_point", "sym", "desc_act", "checkpoint_format"):
        read.has(key)  # zero points are in the file, whatever these say
    schemes = _schemes(read, (4,))
    _refuse_unread(read, _MAKING)
    return Quantization("awq", schemes)


def _schemes(read: Fields, bits: Iterable[int]) -> tuple[Scheme, ...]:
    """Of ``bits`` and ``group_size``; none where some matrices may differ (``dynamic``)."""
    found = _first(read, ("bits", "w_bit"))
    size = _first(read, ("group_size", "q_group_size"))
    number = read.integer(found, least=0, most=64) if found else 4
    if number not in bits:
        raise _refused(read, found or "bits", f"{read.named('quant_method')}: {number} bits")
    group = 0 if size is None else _group(read, size)
    if size is None or read.is_given("dynamic"):
        return ()
    return (Scheme(number, group), Scheme(number, 0))


def _group(read: Fields, key: str) -> int:
    """Columns that share a scale; 0, for which files have -1: all."""
    group = read.integer(key, least=-1, most=MAX_WIDTH)
    if group == 0:
        raise read.wrong(key, "a number of columns of 1 or more, or -1 for all")
    return max(0, group)


def _fp8(read: Fields) -> Quantization:
    fmt = read.optional_text("fmt")
    if fmt not in (None, "e4m3", "float8_e4m3fn", "e4m3fn", "e5m2", "float8_e5m2"):
        raise _refused(read, "fmt", f"floats of eight bits in the form {shown(fmt)}")
    _only(read, "expert_dtype", (None, "fp8"), "experts in another form than fp8")
    _only(read, "scale_fmt", (None, "float", "ue8m0"))
    block = _block(read, "weight_block_size")
    _refuse_unread(read, _FLOAT8)
    return Quantization("fp8", () if block is None else (block,))


def _block(read: Fields, key: str) -> Scheme | None:
    if not read.is_given(key):
        return None
    given = read.value(key)
    is_pair = isinstance(given, list) and len(given) == 2 and all(type(size) is int for size in given)
    if not is_pair or not all(1 <= size <= MAX_WIDTH for size in given):
        raise read.wrong(key, "a list of two sizes, of rows and columns")
    return Scheme(8, given[1], given[0])


def _plain(method: str, harmless: frozenset[str]) -> Callable[[Fields], Quantization]:
    """For a method whose tensors tell all."""

    def quantization(read: Fields) -> Quantization:
        _refuse_unread(read, harmless)
        return Quantization(method)

    return quantization


def _compressed(read: Fields) -> Quantization:
    _check_format(read)
    sparsity = read.section("sparsity_config")
    if sparsity is not None:
        form = sparsity.optional_text("format")
        if form not in (None, "dense"):
            raise _refused(read, "sparsity_config", f"sparse matrices ({shown(form)})")
    _only(read, "transform_config", (None, {}), "matrices with rotated activations")
    schemes: list[Scheme] = []
    groups = read.section("config_groups")
    for _, group in groups.inner() if groups else ():
        _check_format(group)
        weights = group.section("weights")
        for key in ("targets", "input_activations", "output_activations"):
            group.has(key)
        _refuse_unread(group, frozenset())
        if weights is not None:
            schemes += _of_weights(weights)
    _refuse_unread(read, _COMPRESSED)
    return Quantization("compressed-tensors", tuple(schemes))


def _check_format(read: Fields) -> None:
    form = read.optional_text("format")
    if form not in (None, *_COMPRESSED_FORMATS):
        raise _refused(read, "format", f"compressed-tensors in the format {shown(form)}")


def _of_weights(read: Fields) -> list[Scheme]:
    bits = read.integer("num_bits", 8, least=0, most=64)
    kind = read.text("type", "int")
    if (kind, bits) not in (("float", 4), ("float", 8), *(("int", bits) for bits in range(2, 9))):
        raise _refused(read, "num_bits", f"weights of {bits} bits of type {shown(kind)}")
    read.has("symmetric")  # zero points are in the file, or not
    strategy = read.optional_text("strategy")
    group = _group(read, "group_size") if read.is_given("group_size") else 0
    block = _block(read, "block_structure")
    _refuse_unread(read, _WEIGHTS)
    if kind == "float" and bits == 4:
        return []
    match strategy or ("group" if group > 0 else "tensor"):
        case "tensor":
            return [Scheme(bits, 0, 0)]
        case "channel":
            return [Scheme(bits, 0)]
        case "group" | "tensor_group" if group > 0:
            return [Scheme(bits, group)]
        case "block" if block is not None:
            return [block._replace(bits=bits)]
    raise _refused(read, "strategy", f"scales by {shown(strategy)}")


def _first(read: Fields, keys: Iterable[str]) -> str | None:
    """The one of ``keys`` that is there; all are marked as read."""
    given = [key for key in keys if read.is_given(key)]
    return given[0] if given else None


def _text(read: Fields, keys: Iterable[str], default: str) -> str:
    key = _first(read, keys)
    return default if key is None else read.text(key)


def _only(read: Fields, key: str, allowed: tuple[object, ...], meaning: str = "") -> None:
    if not read.is_one_of(key, allowed):
        raise _refused(read, key, meaning or f"{read.key(key)} {read.shown(key)}")


def _refuse_unread(read: Fields, harmless: frozenset[str]) -> None:
    """A key that nobody knows may change what weights mean."""
    for key in read.unread():
        if key not in harmless and read.is_given(key):
            raise _refused(read, key, f"{read.key(key)} {read.shown(key)}")


def _refused(read: Fields, key: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{read.named(key)}: {what} is not supported", hint=_HINT)


_READERS: dict[str, Callable[[Fields], Quantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "fbgemm_fp8": _plain("fbgemm_fp8", _FLOAT8),
    "bitsandbytes": _plain("bitsandbytes", _BITSANDBYTES),
    "mxfp4": _plain("mxfp4", _FLOAT8),
}
"""By ``quant_method``."""
