"""The catalogue: short names of models, what they are, and where on the hub their files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

from ...swarm.names import near_names
from ..formats.config import ModelConfig
from ..formats.hf.config import hf_config
from ..formats.tensors import TensorInfo
from .stored import block_bytes, client_bytes, manifest, native_of, parameters

_DATA = "data/models.json"


@dataclass(frozen=True)
class CatalogueModel:
    """``name``: short, for people. ``title``: which release it is. ``repo``: the maker's files on the hub.
    ``gguf``: a repository of GGUF files, "" if there is none that runs; ``mixtures``: which of its
    quantizations are known here. ``document``: what the maker's config.json says, as far as it matters.
    ``checked``: a published copy of it confirms the figures."""

    name: str
    title: str
    licence: str
    repo: str
    gguf: str
    mixtures: tuple[str, ...]
    document: Mapping[str, Any]
    checked: bool = True

    @cached_property
    def config(self) -> ModelConfig:
        return hf_config(dict(self.document), {}, f"the catalogue's {self.name}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of files, the usual one first."""
        return (*self.mixtures, native_of(self.config))

    @property
    def parameters(self) -> int:
        return parameters(self.config)

    @property
    def default(self) -> CatalogueFiles:
        return CatalogueFiles(self, self.kinds[0])


@dataclass(frozen=True)
class CatalogueFiles:
    """One of the files that a model has on the hub. ``kind``: of ``model.kinds``."""

    model: CatalogueModel
    kind: str

    @property
    def hub_name(self) -> str:
        """As ``open_checkpoint`` takes it."""
        return f"{self.model.gguf}:{self.kind}" if self.kind in self.model.mixtures else self.model.repo

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def block_bytes(self) -> list[int]:
        return block_bytes(self.config, self.kind)

    @property
    def nbytes(self) -> int:
        return sum(self.block_bytes) + client_bytes(self.config, self.kind)

    def manifest(self) -> dict[str, TensorInfo]:
        return manifest(self.config, self.kind)


@lru_cache(maxsize=1)
def catalogue() -> tuple[CatalogueModel, ...]:
    """All models, in the order of the data: families together, the small before the large."""
    entries = json.loads((resources.files(__package__) / _DATA).read_text("utf-8"))
    return tuple(
        CatalogueModel(
            name=entry["name"],
            title=entry["title"],
            licence=entry["licence"],
            repo=entry["repo"],
            gguf=entry.get("gguf", {}).get("repo", ""),
            mixtures=tuple(entry.get("gguf", {}).get("types", ())),
            document=entry["config"],
            checked=entry.get("checked", True),
        )
        for entry in entries
    )


def find_in_catalogue(text: str) -> CatalogueFiles | None:
    """What ``NAME``, ``NAME:TYPE``, or the name of these files on the hub means, in any case; else None."""
    name, colon, kind = text.strip().casefold().partition(":")
    for model in catalogue():
        native = CatalogueFiles(model, native_of(model.config)) if name == model.repo.casefold() else None
        if native is None and name not in (model.name, model.gguf.casefold()):
            continue
        if not colon:
            return native or model.default
        return next((CatalogueFiles(model, each) for each in model.kinds if each.casefold() == kind), None)
    return None


def short_name(text: str) -> CatalogueFiles | None:
    """As ``find_in_catalogue``, for names without an owner: those that are the catalogue's own."""
    return None if "/" in text else find_in_catalogue(text)


def near_in_catalogue(text: str) -> list[str]:
    """Names of the catalogue that ``text`` may be a misspelling of."""
    name, colon, _ = text.partition(":")
    for model in catalogue() if colon else ():
        if model.name == name.casefold():
            return [f"{model.name}:{kind}" for kind in model.kinds]
    return near_names(name, [model.name for model in catalogue()])
