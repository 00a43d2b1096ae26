"""A model on this disk, and what can be asked of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ...swarm.boundaries import may_serve, span_around
from ...swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from ...swarm.runtime.extras import install_extra
from ...swarm.types import ModelRef, Span
from ..families.named_source import NamedSource
from ..formats.advice.pooling import Pooling, pooling_folder, pooling_of_settings
from ..formats.advice.sampling import SamplingAdvice
from ..formats.bounded_json import read_json as read_document
from ..formats.config import ModelConfig
from ..formats.foreign_config import refuse_unfit
from ..formats.hf.config import BOUNDS, hf_config, is_known, read_json
from ..formats.not_a_model import no_model_error
from ..formats.raw_tensor import RawTensor
from ..formats.tensors import TensorInfo, TensorSource
from ..formats.values.shown import shown
from ..pieces.digest import ModelIdentity
from ..pieces.file_hashes import FileState
from ..tokenizer.source import TokenizerSource

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

_HUB_CACHE = re.compile(r"^models--(.+?)--(.+)$")


class Checkpoint:
    """``ref`` (name and digest), ``identity`` and ``config`` of a model; tensors under HuggingFace's names,
    read when used.

    Not thread-safe while it is being closed; reading from several threads is fine.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        source: TensorSource,
        tokenizer_source: TokenizerSource,
        identity: ModelIdentity,
        root: str = "",
        files: Sequence[FileState] = (),
    ) -> None:
        """``root``: the root of the files' piece manifest, if it is known. ``files``: as they were hashed."""
        self.config = config
        self.identity = identity
        self.ref = ModelRef(name, identity.digest, config.n_blocks, identity.brief, root)
        self._source = source
        self._files = files
        self._tokenizer_source = tokenizer_source
        self._tokenizer: Tokenizer | None = None

    def tensor(self, name: str) -> RawTensor:
        """CheckpointError where the model has no such tensor, or its file was not asked for at opening."""
        return self._source.tensor(name)

    def has(self, name: str) -> bool:
        return name in self._source.manifest

    def with_next(self) -> Checkpoint:
        """The same with the blocks that guess further tokens behind its last (``ModelConfig.with_next``), for
        who loads them by themselves. It is closed with this one.

        UnsupportedModelError where the files have none that are known; CheckpointError for damaged ones."""
        if not isinstance(self._source, NamedSource):
            raise UnsupportedModelError(f"{self.ref.name} has no blocks that guess further tokens")
        found = copy(self)
        found._source, found.config = self._source.with_next(), self.config.with_next
        return found

    @property
    def manifest(self) -> Mapping[str, TensorInfo]:
        """What is known of every tensor, those that were not fetched too."""
        return self._source.manifest

    def check_tokenizer(self) -> None:
        """Raises the ModelError for which every client refuses the model, where that shows without building
        the tokenizer. For a thread: it reads the disk."""
        self._tokenizer_source.check()

    def tokenizer(self) -> Tokenizer:
        """Built at the first call: a node that needs none never reads the vocabulary."""
        if self._tokenizer is None:
            self._tokenizer = self._tokenizer_source.build()
        return self._tokenizer

    def release(self) -> None:
        """Give the file pages read so far back, once the weights were copied out of them.

        CheckpointError if a file was changed since it was hashed: then these are weights of another model.
        """
        self._source.release()
        for file in self._files:
            if file.is_overwritten():
                raise CheckpointError(
                    f"{file.path} changed while it was loaded", hint="Start again when it is written."
                )

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def directory_config(directory: Path) -> ModelConfig:
    """From config.json, and generation_config.json where there is one."""
    document, where = _document(directory)
    generation = directory / "generation_config.json"
    more = read_json(generation) if generation.is_file() else {}
    if is_known(document):
        config = hf_config(document, more, where)
    else:
        refuse_unfit(document, where)
        _require_transformers(document["model_type"])
        from ..formats.transformers.config import foreign_config  # here: it imports torch and transformers

        config = foreign_config(document, more, where)
    return replace(
        config,
        sampling=SamplingAdvice.of_generation_config(more),
        pooling=_pooling(directory),
    )


def _pooling(directory: Path) -> Pooling | None:
    modules = directory / "modules.json"
    folder = pooling_folder(read_document(modules, BOUNDS)) if modules.is_file() else None
    settings = directory / (folder or "") / "config.json"
    return pooling_of_settings(read_json(settings)) if folder and settings.is_file() else None


def _document(directory: Path) -> tuple[dict[str, Any], str]:
    """config.json, and its path for messages."""
    path = directory / "config.json"
    if not path.is_file():
        raise no_model_error(directory, "no config.json")
    return read_json(path), str(path)


def _require_transformers(family: str) -> None:
    """Raises UnsupportedModelError where transformers or torch cannot be imported."""
    try:
        import torch  # noqa: F401  here: it takes a second, and most models need neither
        import transformers  # noqa: F401
    except ImportError as error:
        raise _without_transformers(family, " ".join(str(error).split())) from None


def _without_transformers(family: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"model family {shown(family)} is computed by transformers alone, which cannot be imported: {why}",
        hint=f"Install it: {install_extra('hf')} in the checkout.",
    )


def directory_name(directory: Path) -> str:
    """The directory's own name; for a snapshot in the hub's cache, the model's name on the hub."""
    directory = directory.resolve()
    if directory.parent.name == "snapshots" and (match := _HUB_CACHE.match(directory.parent.parent.name)):
        return f"{match[1]}/{match[2]}"
    return directory.name or "model"


def check_span(span: Span, config: ModelConfig) -> None:
    if span.end > config.n_blocks:
        raise UsageError(
            f"blocks {span} are outside the model, which has {config.n_blocks}",
            hint=f"Choose blocks within 0-{config.n_blocks - 1}.",
        )
    if not may_serve(span, config.cuts):
        raise UsageError(
            f"blocks {span} cannot be served alone: some blocks read the keys and values of others",
            hint=f"Choose --blocks {span_around(span, config.cuts)}.",
        )
