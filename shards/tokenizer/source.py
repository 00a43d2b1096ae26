"""Where a model's tokenizer comes from.

A node needs no tokenizer. So nothing here imports the tokenizers library or reads a vocabulary before one is
built.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..formats.config import ModelConfig
from ..formats.gguf.header import GGUFHeader
from .precheck import check_directory, gguf_kind

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class TokenizerSource(Protocol):
    def check(self) -> None:
        """Raises the CheckpointError or UnsupportedModelError that ``build`` certainly raises, as far as that
        is known without reading a vocabulary. For a thread: it reads the disk."""

    def build(self) -> Tokenizer:
        """Raises CheckpointError, UnsupportedModelError."""


class DirectoryTokenizer:
    """The tokenizer of a HuggingFace directory."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self._directory = directory
        self._config = config

    def check(self) -> None:
        check_directory(self._directory)

    def build(self) -> Tokenizer:
        from .hf import hf_tokenizer  # here: nodes need no tokenizer

        return hf_tokenizer(self._directory, self._config)


class GGUFTokenizer:
    """The tokenizer of a GGUF file."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header

    def check(self) -> None:
        gguf_kind(self._header)

    def build(self) -> Tokenizer:
        from .gguf import gguf_tokenizer  # here: nodes need no tokenizer

        return gguf_tokenizer(self._header)
