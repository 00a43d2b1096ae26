"""Tensor types: by their GGUF names, and by ours for what quantizers of HuggingFace checkpoints write; their
sizes; and what a configuration says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ1_M": (29, 256, 56),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}
_BY_NUMBER = {number: name for name, (number, _, _) in _TABLE.items()}
_OTHERS = dict(
    [(4, "Q4_2"), (5, "Q4_3"), (9, "Q8_1"), (15, "Q8_K"), (24, "I8"), (25, "I16"), (26, "I32"), (27, "I64")]
    + [(28, "F64"), (31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8")]
    + [(36, "IQ4_NL_4_4"), (37, "IQ4_NL_4_8"), (38, "IQ4_NL_8_8")]
)
"""The other types of ggml.h, which weights do not have, or had in versions that are gone."""

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
INTEGER_BITS = range(2, 9)
INTEGER_GROUPS = (0, 16, 32, 64, 128, 256, 512, 1024)
"""Columns that share a scale; 0: all of a row."""
CODE_BLOCKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Values in a row that share a scale, of codes that a table turns into values."""
MIXED, ZEROS = "_MIXED", "_ZEROS"
"""Ends of names of integers that only their values can stand for: whose groups are not neighbours, and eight
bits that do not begin at the same number everywhere."""


class Grouped(NamedTuple):
    """Numbers of ``bits``; ``group`` of a row (0: all) share a scale of ``scale_bytes``."""

    bits: int
    group: int
    scale_bytes: int


def groups_of(cols: int, group: int) -> int:
    """How many groups a row of ``cols`` has; the last one may be shorter."""
    return -(-cols // group) if group else 1


def integer_qtype(bits: int, group: int, end: str = "") -> str:
    """Our name for integers in groups of columns. ``end``: MIXED, ZEROS or nothing."""
    return f"INT{bits}_{group or 'ROW'}{end}"


def float8_qtype(group: int, table: str = "E4M3") -> str:
    """Our name for floats of eight bits with a scale for each group of columns. ``table``: E4M3 (e4m3fn) or
    E5M2."""
    return f"F8_{table}_{group or 'ROW'}"


def code_qtype(table: str, block: int) -> str:
    """Our name for codes of four bits. ``table``: NF4, FP4 (both of bitsandbytes) or E2M1 (of nvfp4)."""
    return f"{table}_{block}"


INTEGERS = {
    integer_qtype(bits, group, end): Grouped(bits, group, 2)
    for bits in INTEGER_BITS
    for group in INTEGER_GROUPS
    for end in ("", MIXED, *((ZEROS,) if bits == 8 else ()))
}
FLOAT8 = {float8_qtype(group): Grouped(8, group, 4) for group in INTEGER_GROUPS}
E5M2_FLOAT8 = {float8_qtype(group, "E5M2"): Grouped(8, group, 4) for group in INTEGER_GROUPS}
CODES = {
    code_qtype(table, block): Grouped(4, block, 4)
    for table in ("NF4", "FP4", "E2M1")
    for block in CODE_BLOCKS
}
HF_GROUPED = {**INTEGERS, **FLOAT8, **E5M2_FLOAT8, **CODES}
GGUF_QTYPES = tuple(_TABLE)
QTYPES = (*_TABLE, *AFFINE, *HF_GROUPED)
SUPPORTED = f"Supported types: {', '.join(GGUF_QTYPES)}; in HuggingFace checkpoints, see the guide on models."
"""The hint of an error for a type that is not supported."""


def qtype_of_number(number: int, tensor: str) -> str:
    """The name of GGUF type ``number``; UnsupportedModelError for one that we cannot run."""
    try:
        return _BY_NUMBER[number]
    except KeyError:
        known = f"{_OTHERS[number]}, which is not supported" if number in _OTHERS else ""
        unknown = f"{number}, which no version of ggml that we know has"
        raise UnsupportedModelError(
            f"tensor {tensor} has GGUF type {known or unknown}",
            hint=SUPPORTED,
        ) from None


class Scheme(NamedTuple):
    """What a configuration says of a matrix: ``bits`` of a number; ``group``: columns that share a scale, 0
    for all of a row; ``rows`` that share it, 1 or those of a block, 0 for all."""

    bits: int
    group: int
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a configuration says of quantized matrices. ``method``: its name for who wrote them. ``schemes``:
    what they may be; empty where it says no more than the tensors do.

    Of GPTQ: ``zero_offset`` is added to stored zero points; ``symmetric``: these are all in the middle;
    ``mixed``: a group's columns need not be neighbours.
    """

    method: str
    schemes: tuple[Scheme, ...] = ()
    zero_offset: int = 0
    symmetric: bool = True
    mixed: bool = False


def row_bytes(qtype: str, cols: int) -> int:
    """Bytes of a row of ``cols`` values; CheckpointError where groups do not fit. What a few rows of a matrix
    share, such as zero points packed together, is left out."""
    if qtype in HF_GROUPED:
        grouped = HF_GROUPED[qtype]
        return -(-cols * grouped.bits // 8) + groups_of(cols, grouped.group) * grouped.scale_bytes
    if qtype in AFFINE:
        bits, values, wide = AFFINE[qtype]
        size = values * bits // 8 + (8 if wide else 4)
    else:
        _, values, size = _TABLE[qtype]
    if cols % values:
        raise CheckpointError(f"a row of {cols} values cannot be {qtype}, which comes in groups of {values}")
    return cols // values * size
