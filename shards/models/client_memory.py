"""How much memory a client needs for a model: arithmetic on its shape, before anything is loaded.

What it holds is the head, as ``client_model`` keeps it. The embedding stays in the file: only the rows of
the tokens in use are read from the memory map, and of a head held in eight bits the rows of the best tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...swarm.errors import UsageError
from ..formats.dequantize import INTEGER_QTYPES
from ..formats.qtypes import QTYPES, SUPPORTED
from ..formats.qtypes import row_bytes as file_row_bytes
from ..kernels.linear import TILE
from ..layers.quantize import (
    FLOAT8_SOURCES,
    GROUP,
    HALVED_INT8,
    INT4_SOURCES,
    INT8_SOURCES,
    OWN_FORM,
    UNSIGNED_INT8,
)

PROGRAM_BYTES = 70_000_000
"""Bytes of Python, numpy, cryptography and the other imports: measured on Linux, the same for every model."""
TOKENIZER_BYTES_PER_TOKEN = 320
"""Bytes of a vocabulary for each token, merges included: measured on byte-level BPE vocabularies of 32,000
and 128,000 tokens."""
MOST_ROWS = 16
"""The logits of this many answers are computed together (``client.decoding.head_batch``)."""

_NATIVE_GROUPS = {"Q4_0": 18, "Q4_1": 20, "Q4_K": 18.5, "IQ4_NL": 18, "IQ4_XS": 17.25, "MXFP4": 18}
_NATIVE_GROUPS |= {"Q5_0": 22, "Q5_1": 24, "Q5_K": 22.5, "Q6_K": 26.25, "Q8_0": 34, "int8": 34}
_NATIVE_GROUPS |= {"Q2_K": 10.5, "Q3_K": 14.25} | dict.fromkeys((*INTEGER_QTYPES, *FLOAT8_SOURCES), 36)
_NATIVE_GROUPS |= dict.fromkeys(("TQ1_0", "TQ2_0", "Q1_0", "Q2_0"), 34)
_NATIVE_GROUPS |= dict.fromkeys((*HALVED_INT8, *UNSIGNED_INT8), 40) | {"NVFP4": 36}
"""Bytes of 32 values in the C kernels' layouts, at most; ``int8``: what we round ourselves."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """``qtype``: the head's type in the file, such as "BF16"; the embedding's where ``tied``."""

    vocab_size: int
    hidden_size: int
    tied: bool = False
    qtype: str = "BF16"

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or self.hidden_size < 1 or self.qtype not in QTYPES:
            raise UsageError(
                f"there is no head with {self.vocab_size} rows of {self.hidden_size} {self.qtype} values",
                hint=SUPPORTED,
            )


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """Bytes. ``weights``: held all the time, with the kernels' working memory. ``in_file``: of embedding and
    head on disk, read where needed; pages that the system may take back. ``tokenizer``: about. ``logits``: of
    MOST_ROWS answers made side by side. ``program``: the same for every model.
    """

    weights: int
    in_file: int
    tokenizer: int
    logits: int
    program: int = PROGRAM_BYTES

    @property
    def total(self) -> int:
        """Bytes of the process, without the file's pages and the prompts."""
        return self.weights + self.tokenizer + self.logits + self.program


def client_memory(shape: HeadShape, *, quantize: str = "auto", native: bool = True) -> ClientMemory:
    """What a client on a CPU with activations in float32 needs. ``native``: our C kernels compute the head
    (a compiler is there); otherwise torch's do. Raises UsageError for an unknown ``quantize``."""
    vocab, hidden = shape.vocab_size, shape.hidden_size
    row_in_file = file_row_bytes(shape.qtype, hidden)
    return ClientMemory(
        weights=head_bytes(shape, quantize, native) + 8 * hidden,  # with the final norm
        in_file=vocab * row_in_file * (1 if shape.tied else 2),
        tokenizer=vocab * TOKENIZER_BYTES_PER_TOKEN,
        logits=4 * vocab * MOST_ROWS,
    )


def head_bytes(shape: HeadShape, quantize: str, native: bool) -> int:
    """The head's matrix as ``load_client_model`` holds it, with the bounds of its rows where it is refined,
    and the C kernels' working memory: 64 normed rows, in float32 and as two digits with what describes 32 of
    them."""
    vocab, hidden, qtype = shape.vocab_size, shape.hidden_size, shape.qtype
    form = head_form(qtype, hidden, quantize, native)
    padded = -(-vocab // TILE) * TILE
    bounds = 4 * vocab
    if form in ("float32", "bfloat16"):
        size = 4 if form == "float32" else 2
        return padded * hidden * size + 64 * 4 * hidden if native else vocab * hidden * size
    if native:
        scratch = round(64 * (6 + 28 / GROUP) * hidden)
        matrix = round(padded * hidden // GROUP * _NATIVE_GROUPS[form]) + scratch
        return matrix + bounds + 4 * vocab if form == "int8" else matrix  # and room for the ids to refine
    if form == "int8":
        return vocab * hidden + 2 * vocab + bounds
    padded = -(-vocab // 64) * 64
    # Integers, bfloat16 scales and centres, and the file's own, which are finer, beside them.
    return padded * hidden // 2 + padded * hidden // GROUP * (12 if form == "Q4_K" else 8) + bounds


def check_room(shape: HeadShape, beside: int = 0, *, quantize: str, native: bool) -> None:
    """Raises UsageError if the head, and ``beside`` bytes of other matrices that a client multiplies by, do
    not fit into the free memory, swap included."""
    import psutil

    need = client_memory(shape, quantize=quantize, native=native).weights + beside
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if need <= free:
        return
    less = client_memory(shape, quantize="auto", native=native).weights + beside
    hint = (
        "Close other programs, or take a smaller model; docs/internals/client-memory.md says what each needs."
    )
    if less <= free:
        hint = f"With --quantize auto it takes {less / 1e9:.2f} GB."
    raise UsageError(
        f"the model's output head takes {need / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free",
        hint=hint,
    )


def head_form(qtype: str, hidden: int, quantize: str, native: bool) -> str:
    """How a head is held: "int8" (rounded by us), a file type (as it is in the file), or a torch type."""
    if quantize not in ("auto", "none", "int8", "int4"):
        raise UsageError(f"unknown quantization {quantize!r}", hint="Choose from auto, none, int8, int4.")
    dense = "bfloat16" if qtype == "BF16" else "float32"
    if quantize == "none" or hidden % GROUP:
        return dense
    if quantize == "auto" and qtype == "F32":
        return dense
    own = OWN_FORM.get(qtype)
    if own is not None and quantize in ("auto", own) and (native or qtype in INT4_SOURCES):
        alike = {"int4": "Q4_1", "int8": "Q8_0"}
        return qtype if qtype in _NATIVE_GROUPS else alike[own]
    if qtype in (*INT8_SOURCES, *HALVED_INT8) and native:
        return qtype if qtype in (*INTEGER_QTYPES, *HALVED_INT8) else "Q8_0"
    return "int8"
