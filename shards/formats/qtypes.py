"""Tensor types by their GGUF names, and MLX's, and their sizes."""

from __future__ import annotations

from ...swarm.errors import CheckpointError, UnsupportedModelError

DENSE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types whose bytes are plain values, and which floats these are."""

# name -> (GGUF type number, values of a group, bytes of a group); numbers and sizes as in ggml.h.
_TABLE: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}
_BY_NUMBER = {number: name for name, (number, _, _) in _TABLE.items()}
_OTHERS = dict(
    [(16, "IQ2_XXS"), (17, "IQ2_XS"), (18, "IQ3_XXS"), (19, "IQ1_S"), (21, "IQ3_S"), (22, "IQ2_S")]
    + [(28, "F64"), (29, "IQ1_M"), (34, "TQ1_0"), (35, "TQ2_0"), (40, "NVFP4")]
)
"""Further types of ggml.h that occur in files of models, and that are not read."""

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
"""The group sizes that MLX quantizes to: see ``affine``."""


def affine_qtype(bits: int, group: int, wide: bool) -> str:
    """Our name for a matrix quantized by MLX. ``wide``: its scales are float32, else 16 bits."""
    return f"MLX{bits}_{group}" + ("_F32" if wide else "")


AFFINE = {
    affine_qtype(bits, group, wide): (bits, group, wide)
    for bits in AFFINE_BITS
    for group in AFFINE_GROUPS
    for wide in (False, True)
}
GGUF_QTYPES = tuple(_TABLE)
QTYPES = (*_TABLE, *AFFINE)
SUPPORTED = f"Supported types: {', '.join(GGUF_QTYPES)}, and what MLX quantizes to."
"""The hint of an error for a type that is not supported."""


def qtype_of_number(number: int, tensor: str) -> str:
    """The name of GGUF type ``number``; UnsupportedModelError for one that we cannot run."""
    try:
        return _BY_NUMBER[number]
    except KeyError:
        raise UnsupportedModelError(
            f"tensor {tensor} has GGUF type {_OTHERS.get(number, number)}, which is not supported",
            hint=SUPPORTED,
        ) from None


def row_bytes(qtype: str, cols: int) -> int:
    """Bytes of a row of ``cols`` values; CheckpointError where groups do not fit."""
    if qtype in AFFINE:
        bits, values, wide = AFFINE[qtype]
        size = values * bits // 8 + (8 if wide else 4)
    else:
        _, values, size = _TABLE[qtype]
    if cols % values:
        raise CheckpointError(f"a row of {cols} values cannot be {qtype}, which comes in groups of {values}")
    return cols // values * size
