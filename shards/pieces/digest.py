"""What a model is: one digest over every file that shapes its answers.

The *digest* is the root of a small Merkle tree. Its leaves are the files of a model, each by its name, its
size and its content; its branches are the four parts below, so that two models can be compared part by part:

    digest  = SHA-256 of ["swarm-node model 2", settings, weights, tokenizer, template]
    part    = SHA-256 of [[name, size, content], …], the part's files sorted by name

each list as JSON without spaces, in ASCII, hashes in lowercase hexadecimal. The content of a file is its
SHA-256. The HuggingFace hub tells that of a large file without sending the file: so a node that has fetched
some files of a model, or parts of them, knows the same digest as one that has all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..formats.files.numbered import NumberedFiles

_VERSION = "swarm-node model 2"
_BRIEF = 8
"""``ModelIdentity.brief`` has this many characters of each part's hash."""


class Part(StrEnum):
    """The parts in the order of the digest; the values are for people."""

    SETTINGS = "configuration"
    WEIGHTS = "weights"
    TOKENIZER = "tokenizer"
    TEMPLATE = "chat template"


SMALL_FILES = {
    "config.json": Part.SETTINGS,
    "generation_config.json": Part.SETTINGS,
    "model.safetensors.index.json": Part.WEIGHTS,
    "tokenizer.json": Part.TOKENIZER,
    "tokenizer_config.json": Part.TOKENIZER,
    "special_tokens_map.json": Part.TOKENIZER,
    "chat_template.jinja": Part.TEMPLATE,
    "chat_template.json": Part.TEMPLATE,
}
"""Every file beside the weights that is read of a model, if the model has it. A file that is not read, such
as a README, is not a part of the model: it may differ."""
CLIENT_FILES = tuple(name for name, part in SMALL_FILES.items() if part in (Part.TOKENIZER, Part.TEMPLATE))
"""Small files that only clients read."""


@dataclass(frozen=True, slots=True)
class FileHash:
    """A leaf. ``content``: the file's SHA-256."""

    name: str
    size: int
    content: bytes


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """``parts``: each one's hash, 64 lowercase hex characters, in the order of ``Part``."""

    parts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """64 lowercase hex characters."""
        return _hash([_VERSION, *self.parts])

    @property
    def brief(self) -> str:
        """The beginnings of the parts' hashes, to show people what differs; they prove nothing."""
        return "".join(part[:_BRIEF] for part in self.parts)


def identity_of(files: Iterable[FileHash]) -> ModelIdentity:
    """The identity of a model from all its files, in any order."""
    parts: dict[Part, list[FileHash]] = {part: [] for part in Part}
    for file in sorted(files, key=lambda file: file.name):
        parts[SMALL_FILES.get(file.name, Part.WEIGHTS)].append(file)
    return ModelIdentity(
        tuple(_hash([[f.name, f.size, f.content.hex()] for f in part]) for part in parts.values())
    )


def gguf_names(count: int) -> list[str]:
    """What the ``count`` files of a GGUF model are called here, in order, independent of their names on the
    disk: ``model.gguf``, or ``model-00001-of-00003.gguf`` and so on."""
    return ["model.gguf"] if count == 1 else NumberedFiles("model", count, ".gguf").names


def is_weights(name: str) -> bool:
    """Whether a file has tensors, by its name."""
    return name.endswith((".gguf", ".safetensors"))


def what_differs(one: str, other: str, before: str = "") -> str:
    """For people, from what peers say of two models (``brief``): ``they differ in the tokenizer``, with
    ``before`` in front; "" where it is not known."""
    length = _BRIEF * len(Part)
    if len(one) != length or len(other) != length or one == other:
        return ""
    parts = {
        part: (one[at : at + _BRIEF], other[at : at + _BRIEF])
        for part, at in zip(Part, range(0, length, _BRIEF), strict=True)
    }
    if (none := _hash([])[:_BRIEF]) in (settings := parts[Part.SETTINGS]):
        if settings == (none, none):
            return f"{before}they are two GGUF models"
        return f"{before}one is a GGUF model, the other a directory of safetensors files"
    differing = [
        f"the {part}" + (", which one of them lacks" if none in pair else "")
        for part, pair in parts.items()
        if pair[0] != pair[1]
    ]
    return f"{before}they differ in {' and '.join(differing)}"


def _hash(document: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(document, separators=(",", ":")).encode()).hexdigest()
