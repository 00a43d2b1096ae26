"""From what a person calls a model to where it is: on this machine, in the swarm, or on the hub."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from ...swarm.errors import CheckpointError, ModelError, SwarmError, UsageError
from ...swarm.names import ModelName, ambiguous, did_you_mean, digest_prefix, listed, near_names, plain_name
from ...swarm.naming.model_choice import Reason
from ...swarm.types import ModelRef
from ..catalogue.catalogue import near_in_catalogue, short_name
from .known_models import KnownModels, default_known
from .local_models import LocalModels, ModelFiles, default_local_models, models_folder
from .name_decision import ModelIndex, NameDecision, SwarmModels, decide_name, of_hub
from .opening import is_hub_name, looks_like_path, near_in, open_checkpoint

if TYPE_CHECKING:
    from ...swarm.naming.witnesses import Witnesses


class Source(StrEnum):
    LOCAL = "local"
    SWARM = "swarm"
    HUB = "hub"


class ModelNotFoundError(ModelError):
    """No model of this name was found. ``wanted`` is what to ask the swarm for; None if none was named."""

    def __init__(self, message: str, *, hint: str, wanted: ModelName | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """``path``: what ``open_checkpoint`` takes; "" for a model that only the swarm has. ``ref``: the model,
    where it is known without opening it, always for one of the swarm's, also where its weights come from the
    hub. ``root``: of the weights' manifest, where the person gave it. ``called``: the name that the person
    gave, "" for a path. ``decision``: how one of several models was taken. ``variants``: what else is
    announced of one of the swarm's: its digest, with another number of blocks."""

    name: str
    source: Source
    path: str = ""
    ref: ModelRef | None = None
    root: str = ""
    called: str = ""
    decision: NameDecision | None = None
    variants: tuple[ModelRef, ...] = ()

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """What to look for in a directory."""
        return () if self.ref is None else (self.ref, *self.variants)


def find_local(
    text: str, local_models: LocalModels | None = None, known: KnownModels | None = None
) -> ModelLocation | None:
    """The first tier alone, without a look at the network: a path, or a name that one model here has; if none
    has it, the name on the hub of what the catalogue calls so.

    None where it is not here, or where several models here have that name. Reads the disk: for a thread.
    Raises UsageError for a text that is not a name.
    """
    if _is_path(text):
        return _at_path(text)
    wanted, _ = with_pin(ModelName.parse(text), known or default_known())
    found = _named_here(wanted, local_models := local_models or default_local_models())
    if not found and (longer := _of_catalogue(wanted)) is not None:
        found = _named_here(longer, local_models)
    return found[0] if len(found) == 1 else None


async def resolve_model(
    text: str | os.PathLike[str] | None,
    index: ModelIndex | None,
    local_models: LocalModels | None = None,
    *,
    hub: bool = True,
    witnesses: Witnesses | None = None,
    known: KnownModels | None = None,
) -> ModelLocation:
    """The nearest of: files on this machine, the swarm's index of models, the HuggingFace hub. What none of
    these calls so, but the catalogue does, is looked for under its name on the hub.

    ``text``: a path, ``NAME``, ``NAME@DIGEST`` (its first characters) or ``NAME@sha256:ROOT``; None is the
    one model that the swarm serves. ``index`` is None outside of a swarm. ``hub``: whether the hub counts.
    ``witnesses`` are asked if the swarm has several models of the name. ``known``: what this machine knows of
    names; None: ``default_known``.

    Raises UsageError for a name that several different models have and where none was named though there are
    several, ModelNotFoundError with near names if none has it, and NetworkError.
    """
    local_models, known = local_models or default_local_models(), known or default_known()
    if text is None:
        return await _only_one(index, local_models, witnesses, known)
    text = os.fspath(text)
    if _is_path(text):
        return _at_path(text)
    wanted = ModelName.parse(text)
    return await resolve_name(
        wanted, index, local_models, hub=hub, witnesses=witnesses, known=known, folder=Path()
    )


async def resolve_name(
    wanted: ModelName,
    index: ModelIndex | None,
    local_models: LocalModels,
    *,
    hub: bool = True,
    witnesses: Witnesses | None = None,
    known: KnownModels | None = None,
    folder: Path | None = None,
) -> ModelLocation:
    """``resolve_model`` for a name that may be a stranger's: it is never taken for a path. ``hub``: whether
    the hub is asked as well. ``known`` None: nothing. ``folder``: where a person may have meant a file, whose
    models count among the near names."""
    name = wanted.name
    pinned = False
    if known is not None:
        wanted, pinned = await asyncio.to_thread(with_pin, wanted, known)
    on_hub = hub and "/" in name and not (wanted.digest or wanted.root) and is_hub_name(name)
    here = await asyncio.to_thread(_named_here, wanted, local_models)
    if len(here) == 1:
        return here[0]
    refs = [] if index is None else await index.models()
    if here:
        return await asyncio.to_thread(_one_of, wanted, here, refs, known)
    if index is not None:
        found = await decide_name(
            wanted,
            refs,
            index,
            witnesses=witnesses,
            known=known,
            pinned=pinned,
            hub_digest=hub_digest if on_hub else None,
        )
        if found is not None:
            place = _in_swarm(wanted, found)
            return await or_on_hub(place, index, (place.called, place.name)) if hub else place
    if on_hub:
        return ModelLocation(name, Source.HUB, path=name, called=name)
    if (longer := _of_catalogue(wanted)) is not None:
        return await resolve_name(
            longer, index, local_models, hub=hub, witnesses=witnesses, known=known, folder=folder
        )
    await asyncio.to_thread(refuse_broken, wanted, local_models)
    raise await asyncio.to_thread(_not_found, wanted, refs, local_models, index is not None, pinned, folder)


def _of_catalogue(wanted: ModelName) -> ModelName | None:
    """The name on the hub of what the catalogue calls so; None where it calls nothing so."""
    files = None if wanted.digest or wanted.root else short_name(wanted.name)
    return None if files is None else ModelName(files.hub_name)


def refuse_broken(wanted: ModelName, local_models: LocalModels | None = None) -> None:
    """CheckpointError where what has this name on this machine is no model, or not all of one: nobody has to
    wait for it. A name with an owner may mean the hub's, one with a digest the swarm's."""
    if "/" in wanted.name or wanted.digest or wanted.root:
        return
    broken = (local_models or default_local_models()).broken(wanted.name)
    if broken is not None:
        raise CheckpointError(f"{wanted} on this machine cannot run: {broken.problem}", hint=broken.hint)


def hub_digest(name: str) -> str:
    """The digest of a model of the hub by the hub's own hashes, its large files unread; "" where it has none
    that we read, or cannot be asked. Blocks."""
    from .hub import open_hub_model  # here: huggingface_hub takes half a second to import

    try:
        with open_hub_model(name, blocks=None, client=False, progress=None, weights=False) as checkpoint:
            return checkpoint.ref.digest
    except SwarmError:
        return ""


def with_pin(wanted: ModelName, known: KnownModels) -> tuple[ModelName, bool]:
    """What the user has pinned the name to, where nothing else was said with it; whether that is so."""
    if wanted.digest or wanted.root or (pin := known.pin(wanted.name)) is None:
        return wanted, False
    return ModelName(wanted.name, pin.digest, pin.root), True


def _one_of(
    wanted: ModelName, here: Sequence[ModelLocation], refs: Sequence[ModelRef], known: KnownModels | None
) -> ModelLocation:
    """Of several models on this machine, the one that it used last under this name; else the one that the
    swarm serves. The result says so. Raises UsageError."""
    places = {place.ref.digest: place for place in here if place.ref is not None}

    def taken(digest: str, reason: str, why: str) -> ModelLocation:
        digests = sorted(places, key=lambda each: each != digest)
        name, *others = (f"{places[each].name}@{digest_prefix(each, places)}" for each in digests)
        also = f"; also here: {', '.join(others)}" if others else ""
        sentence = f"{wanted} is {name} here: {why}{also}."
        place = places[digest]
        assert place.ref is not None
        return replace(place, decision=NameDecision(str(wanted), place.ref, reason, sentence))

    used = None if known is None else known.used(wanted.name, places)
    if used is not None:
        return taken(used.digest, "used", f"the one that this machine used last, on {used.last:%Y-%m-%d}")
    served = places.keys() & {ref.digest for ref in refs}
    if len(served) == 1:
        return taken(served.pop(), "served", "the only one that the swarm serves")
    raise ambiguous(wanted, [place.ref for place in here if place.ref is not None], "on this machine")


async def _only_one(
    index: ModelIndex | None, local_models: LocalModels, witnesses: Witnesses | None, known: KnownModels
) -> ModelLocation:
    """The model that the swarm serves; from this machine, if its files are here."""
    if index is None:
        raise UsageError("no model given", hint="Pass --model with a path or a name.")
    refs = await index.models()
    if not refs:
        raise ModelNotFoundError(
            "this swarm serves no model yet", hint="Start one with: `swarm-node serve --model PATH_OR_NAME`"
        )
    models = list({ref.digest: ref for ref in refs}.values())
    if len({plain_name(ref.name) for ref in refs}) > 1:
        names = [str(ref) if _is_shared(ref, models) else ref.name for ref in models]
        count = f"{len(models)} models" if len(models) > 1 else "a model under several names"
        raise UsageError(f"this swarm serves {count}", hint=f"Pass --model with {listed(names)}.")
    wanted, pinned = await asyncio.to_thread(with_pin, ModelName(refs[0].name), known)
    found = await decide_name(wanted, refs, index, witnesses=witnesses, known=known, pinned=pinned)
    if found is None:
        raise UsageError(
            f"this swarm serves another {wanted.name} than the one that you have pinned",
            hint=f"Pass --model, or take the pin back: `swarm-node models unpin {quote(wanted.name)}`",
        )
    place = _in_swarm(wanted, found)
    for here in await asyncio.to_thread(lambda: _with_digests(local_models.find(place.name))):
        if here.ref is not None and here.ref.digest == found.refs[0].digest:
            return replace(here, decision=found.decision)
    return await or_on_hub(place, index, (place.called, place.name))


def _in_swarm(wanted: ModelName, found: SwarmModels) -> ModelLocation:
    ref, *variants = found.refs
    return ModelLocation(
        ref.name,
        Source.SWARM,
        ref=ref,
        root=wanted.root,
        called=wanted.name,
        decision=found.decision,
        variants=tuple(variants),
    )


async def or_on_hub(place: ModelLocation, index: ModelIndex, names: Iterable[str]) -> ModelLocation:
    """A place in the swarm whose nodes share no weights, as nodes do that took a part of the model from the
    hub: on the hub, if one of ``names`` there has the same digest."""
    names = [name for name in names if "/" in name and is_hub_name(name)]
    if not names or place.source is not Source.SWARM or place.ref is None or place.root:
        return place
    nodes = await index.nodes_of(place.refs)
    if any(node.shares_weights and node.weights_root for node in nodes):
        return place
    is_told = place.decision is not None and place.decision.reason == Reason.HUB
    for name in dict.fromkeys(names):
        if is_told or await of_hub(hub_digest, name) == place.ref.digest:
            return replace(place, source=Source.HUB, path=name)
    return place


def _is_path(text: str) -> bool:
    path = Path(text).expanduser()
    is_bare = text.endswith(".gguf") and path.name == text
    return (looks_like_path(text) and not is_bare) or path.is_file() or (path / "config.json").is_file()


def _at_path(text: str) -> ModelLocation:
    return ModelLocation(Path(text).name, Source.LOCAL, path=text)


def _named_here(wanted: ModelName, local_models: LocalModels) -> list[ModelLocation]:
    """What is meant on this machine: nothing, one place, or one for each of several different models."""
    found = [model for model in local_models.find(wanted.name) if wanted.root in ("", model.root)]
    if len(found) <= 1 and not wanted.digest:
        return [ModelLocation(model.name, Source.LOCAL, str(model.path), root=model.root) for model in found]
    places = [
        place for place in _with_digests(found) if place.ref is not None and wanted.fits(place.ref.digest)
    ]
    return list({place.ref: place for place in reversed(places)}.values())[::-1]


def _with_digests(models: Sequence[ModelFiles]) -> list[ModelLocation]:
    """The models with their digests; those that cannot be opened are left out."""
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
    wanted: ModelName,
    refs: Sequence[ModelRef],
    local_models: LocalModels,
    in_swarm: bool,
    pinned: bool,
    folder: Path | None,
) -> ModelNotFoundError:
    names = [ref.name for ref in refs] + local_models.near(wanted.name)
    if folder is not None:
        names += near_in(folder, wanted.name)
    if not near_names(wanted.name, names):
        names += near_in_catalogue(wanted.name)
    advice = did_you_mean(wanted.name, names, "known:") or (
        f"give a path or a name on the HuggingFace hub, or put the model into {models_folder()}"
    )
    hint = advice[0].upper() + advice[1:].rstrip(".?") + ("?" if advice.endswith("?") else ".")
    if Path(wanted.name).is_dir():
        hint = f"For the folder of this name write ./{wanted.name}"
    if pinned:  # what is near is nearer than the pin allows
        hint = f"`swarm-node models unpin {quote(wanted.name)}` takes the pin back."
    is_yours = ", which you have pinned," if pinned else ""
    swarm = " and nobody in this swarm serves one" if in_swarm else ""
    return ModelNotFoundError(
        f"there is no model {str(wanted)!r}{is_yours} on this machine{swarm}", hint=hint, wanted=wanted
    )


def _is_shared(ref: ModelRef, refs: Sequence[ModelRef]) -> bool:
    return sum(ref.name == other.name for other in refs) > 1
