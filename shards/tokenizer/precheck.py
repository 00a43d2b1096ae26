"""What a model lacks for a tokenizer, found without building it: names, and the first bytes of a file, tell
most of what makes clients refuse a model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ..formats.gguf.header import GGUFHeader
from ..formats.not_a_model import download_hint, tokenizer_hint
from ..formats.values.fields import Fields
from ..formats.values.shown import shown
from .splitting import NOT_BYTE_LEVEL, SPLITTINGS, Splitting

_FIRST_BYTES = 4096
"""The first bytes of a ``tokenizer.json`` that are read: a JSON object begins in them."""


def check_directory(directory: Path) -> None:
    """CheckpointError if tokenizer.json is missing, or does not begin as a JSON object."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no tokenizer.json", hint=tokenizer_hint(directory))
    try:
        with path.open("rb") as file:
            first = file.read(_FIRST_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if not first.lstrip().startswith(b"{"):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object", hint=download_hint(first))


class GGUFKind(NamedTuple):
    """How a GGUF file's vocabulary is used: byte-level BPE (``gpt2`` in the file), or else SentencePiece
    (``llama``, and ``gemma4``, whose merges are in the file). ``splitting``: of byte-level BPE; None where a
    file names none."""

    is_byte_level: bool
    splitting: Splitting | None = None


def gguf_kind(header: GGUFHeader) -> GGUFKind:
    """CheckpointError for a vocabulary that is missing, UnsupportedModelError for kinds we cannot read."""
    path = header.file.path
    if not header.count("tokenizer.ggml.tokens"):
        raise CheckpointError(
            f"{path} holds no vocabulary", hint="Convert the model anew, or get it from another source."
        )
    read = Fields(header.metadata, str(path))
    model = read.optional_text("tokenizer.ggml.model")
    if model == "llama":
        return GGUFKind(is_byte_level=False)
    if model not in ("gpt2", "gemma4"):
        raise UnsupportedModelError(
            f"the tokenizer of {path.name} is {shown(model)} (tokenizer.ggml.model), which is not supported",
            hint="Supported in GGUF files: gpt2 (BPE), llama (SPM) and gemma4.",
        )
    name = read.optional_text("tokenizer.ggml.pre") if model == "gpt2" else None
    if name and name not in SPLITTINGS:
        reason = "spells its tokens in characters" if name in NOT_BYTE_LEVEL else "is not known"
        raise UnsupportedModelError(
            f"{path.name} splits text by {shown(name)} (tokenizer.ggml.pre), which {reason}",
            hint="Use the model's HuggingFace directory, which describes its tokenizer in full.",
        )
    if "tokenizer.ggml.merges" not in header.metadata:
        raise CheckpointError(
            f"{path} has no merges, so its tokens cannot be put together",
            hint="Convert the model anew, or get it from another source.",
        )
    return GGUFKind(is_byte_level=model == "gpt2", splitting=SPLITTINGS[name] if name else None)
