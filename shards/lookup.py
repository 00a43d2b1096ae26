"""From what a person calls a model to where it is: on this machine, in the swarm, or on the hub."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from ..swarm.errors import ModelError, SwarmError, UsageError
from ..swarm.names import ModelName, ambiguous, did_you_mean, listed, references
from ..swarm.types import ModelRef
from .checkpoint import is_hub_name, looks_like_path, open_checkpoint
from .registry import LocalRegistry, ModelFiles, default_registry, models_folder


class Source(StrEnum):
    LOCAL = "local"
    SWARM = "swarm"
    HUB = "hub"


class ModelIndex(Protocol):
    """The part of a directory that names are looked up in."""

    async def models(self) -> list[ModelRef]: ...


class ModelNotFoundError(ModelError):
    """Nobody has a model of this name. ``wanted`` is what to ask the swarm for; None if none was named."""

    def __init__(self, message: str, *, hint: str, wanted: ModelName | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """``path``: what ``open_checkpoint`` takes; "" for a model that only the swarm has. ``ref``: the model,
    where it is known without opening it, always for one of the swarm's. ``root``: of the weights' manifest,
    where the person gave it."""

    name: str
    source: Source
    path: str = ""
    ref: ModelRef | None = None
    root: str = ""


def find_local(text: str, registry: LocalRegistry | None = None) -> ModelLocation | None:
    """The first tier alone, without a look at the network: a path, or a name that one model here has.

    None where it is not here, or where several models here have that name. Reads the disk: for a thread.
    Raises UsageError for what is no name.
    """
    if _is_path(text):
        return _at_path(text)
    found = _named_here(ModelName.parse(text), registry or default_registry())
    return found[0] if len(found) == 1 else None


async def resolve_model(
    text: str | os.PathLike[str] | None,
    index: ModelIndex | None,
    registry: LocalRegistry | None = None,
    *,
    hub: bool = True,
) -> ModelLocation:
    """The nearest of: files on this machine, the swarm's index of models, the HuggingFace hub.

    ``text``: a path, ``NAME``, ``NAME@DIGEST`` (its first characters) or ``NAME@sha256:ROOT``; None is the
    one model that the swarm serves. ``index`` is None outside of a swarm. ``hub``: whether the hub counts.

    Raises UsageError for a name that several different models have and where none was named though there are
    several, ModelNotFoundError where nobody has it, with near names, and NetworkError.
    """
    registry = registry or default_registry()
    if text is None:
        return await _only_one(index, registry)
    text = os.fspath(text)
    if _is_path(text):
        return _at_path(text)
    return await resolve_name(ModelName.parse(text), index, registry, hub=hub)


async def resolve_name(
    wanted: ModelName, index: ModelIndex | None, registry: LocalRegistry, *, hub: bool = True
) -> ModelLocation:
    """``resolve_model`` for a name that may be a stranger's: it is never taken for a path. ``hub``: whether
    the hub is asked as well."""
    here = await asyncio.to_thread(_named_here, wanted, registry)
    if len(here) == 1:
        return here[0]
    refs = [] if index is None else await index.models()
    if here:
        served = {ref.digest for ref in refs}
        asked = [place for place in here if place.ref is not None and place.ref.digest in served]
        if len(asked) == 1:
            return asked[0]
        raise ambiguous(wanted, [place.ref for place in here if place.ref is not None], "on this machine")
    meant = references(wanted, refs)
    if len(meant) == 1:
        return ModelLocation(meant[0].name, Source.SWARM, ref=meant[0], root=wanted.root)
    if meant:
        raise ambiguous(wanted, meant, "in this swarm")
    if hub and "/" in wanted.name and not (wanted.digest or wanted.root) and is_hub_name(wanted.name):
        return ModelLocation(wanted.name, Source.HUB, path=wanted.name)
    raise await asyncio.to_thread(_not_found, wanted, refs, registry, index is not None)


async def _only_one(index: ModelIndex | None, registry: LocalRegistry) -> ModelLocation:
    if index is None:
        raise UsageError("no model given", hint="Pass --model with a path or a name.")
    refs = list({ref.digest: ref for ref in await index.models()}.values())
    if not refs:
        raise ModelNotFoundError(
            "this swarm serves no model yet",
            hint="Start one with: swarm-node serve --model PATH_OR_NAME",
        )
    if len(refs) > 1:
        names = [str(ref) if _is_shared(ref, refs) else ref.name for ref in refs]
        raise UsageError(f"this swarm serves {len(refs)} models", hint=f"Pass --model with {listed(names)}.")
    return await asyncio.to_thread(_here_or_swarm, refs[0], registry)


def _here_or_swarm(ref: ModelRef, registry: LocalRegistry) -> ModelLocation:
    for place in _with_digests(registry.find(ref.name)):
        if place.ref is not None and place.ref.digest == ref.digest:
            return place
    return ModelLocation(ref.name, Source.SWARM, ref=ref)


def _is_path(text: str) -> bool:
    path = Path(text).expanduser()
    return looks_like_path(text) or path.is_file() or (path / "config.json").is_file()


def _at_path(text: str) -> ModelLocation:
    return ModelLocation(Path(text).name, Source.LOCAL, path=text)


def _named_here(wanted: ModelName, registry: LocalRegistry) -> list[ModelLocation]:
    """What is meant on this machine: nothing, one place, or one for each of several different models."""
    found = [model for model in registry.find(wanted.name) if wanted.root in ("", model.root)]
    if len(found) <= 1 and not wanted.digest:
        return [ModelLocation(model.name, Source.LOCAL, str(model.path), root=model.root) for model in found]
    places = [
        place for place in _with_digests(found) if place.ref is not None and wanted.fits(place.ref.digest)
    ]
    return list({place.ref: place for place in reversed(places)}.values())[::-1]


def _with_digests(models: Sequence[ModelFiles]) -> list[ModelLocation]:
    """With the digest of each; what cannot be opened is left out."""
    places = []
    for model in models:
        try:
            with open_checkpoint(str(model.path)) as checkpoint:
                ref = checkpoint.ref
        except SwarmError:
            continue
        places.append(ModelLocation(model.name, Source.LOCAL, str(model.path), ref, model.root))
    return places


def _not_found(
    wanted: ModelName, refs: Sequence[ModelRef], registry: LocalRegistry, in_swarm: bool
) -> ModelNotFoundError:
    names = [ref.name for ref in refs] + [model.name for model in registry.models()]
    advice = did_you_mean(wanted.name, names, "known:") or (
        f"give a path or a name on the HuggingFace hub, or put the model into {models_folder()}"
    )
    swarm = " and nobody in this swarm serves one" if in_swarm else ""
    return ModelNotFoundError(
        f"there is no model {str(wanted)!r} on this machine{swarm}",
        hint=advice[0].upper() + advice[1:].rstrip(".?") + ("?" if advice.endswith("?") else "."),
        wanted=wanted,
    )


def _is_shared(ref: ModelRef, refs: Sequence[ModelRef]) -> bool:
    return sum(ref.name == other.name for other in refs) > 1
