"""Which GGUF files of a repository on the hub a name means: ``OWNER/NAME:QUANTIZATION`` or
``OWNER/NAME:FILE.gguf``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ...swarm.errors import CheckpointError
from ...swarm.names import MAX_NAME_CHARS, QUANTIZATION
from ..formats.files.numbered import NumberedFiles, numbered
from ..formats.gguf.reader import is_beside
from ..formats.values.shown import shown
from ..pieces.digest import gguf_names

if TYPE_CHECKING:
    from .hub_repo import HubFile

_QUANTIZATION = re.compile(rf"(?:.*?[-_.])?({QUANTIZATION})", re.IGNORECASE)
_LISTED = 12
"""A message names at most this many choices."""


@dataclass(frozen=True, slots=True)
class HubGGUF:
    """One model. ``stem``: the path of its files without number and ending. ``row``: if they have numbers."""

    stem: str
    row: NumberedFiles | None

    @property
    def paths(self) -> list[str]:
        """Of all files that it should have, in order."""
        return self.row.names if self.row else [f"{self.stem}.gguf"]

    def has(self, path: str) -> bool:
        """Whether one of its files is called so, in any case; linear in many models of many files each."""
        row = numbered(path)
        if row is None or self.row is None:
            return self.row is None and path == f"{self.stem}.gguf".casefold()
        return (row.stem, row.count) == (self.stem.casefold(), self.row.count)

    @property
    def quantization(self) -> str:
        """As the file's or the folder's name says it at its end, such as "Q4_K_M"; "" if neither does."""
        path = PurePosixPath(self.stem)
        for name in (path.name, path.parent.name):
            if match := _QUANTIZATION.fullmatch(name):
                return match[1].upper()
        return ""

    def files(self, there: Mapping[str, HubFile]) -> dict[str, HubFile]:
        """The files by their names in the model's digest. CheckpointError where one is missing."""
        if missing := [path for path in self.paths if path not in there]:
            raise CheckpointError(
                f"the HuggingFace hub lacks {len(missing)} of the {len(self.paths)} files of {self.stem}: "
                f"{missing[0]}",
                hint="Choose another quantization, or another repository of the model.",
            )
        names = gguf_names(len(self.paths))
        return {name: there[path] for name, path in zip(names, self.paths, strict=True)}


def gguf_of(paths: Iterable[str]) -> list[HubGGUF]:
    """The GGUF models among the files of a repository, in order; what belongs to a model and is none is left
    out."""
    rows = {(numbered(path), path.removesuffix(".gguf")) for path in paths if path.endswith(".gguf")}
    models = {
        HubGGUF(row.stem if row else stem, row): None for row, stem in sorted(rows, key=lambda each: each[1])
    }
    return [model for model in models if not is_beside(PurePosixPath(model.stem).name)]


def called(repo: str, model: HubGGUF, models: Sequence[HubGGUF]) -> str:
    """``OWNER/NAME:QUANTIZATION``; with the file's name where ``models`` have several of it."""
    return _called(repo, model, Counter(each.quantization for each in models))


def _called(repo: str, model: HubGGUF, quantizations: Counter[str]) -> str:
    """``quantizations``: how many models there are of each."""
    if model.quantization and quantizations[model.quantization] == 1:
        return f"{repo}:{model.quantization}"
    path = f"{model.stem}.gguf"
    name = PurePosixPath(path).name
    is_long = len(f"{repo}:{path}") > MAX_NAME_CHARS  # nobody could announce that
    return f"{repo}:{name if is_long else path}"[:MAX_NAME_CHARS]


def chosen(repo: str, choice: str, models: Sequence[HubGGUF]) -> HubGGUF:
    """The model that ``choice`` means: a file's name or path, or a quantization; "" where there is only one.
    CheckpointError, which names the choices."""
    wanted = choice.casefold()
    ways: tuple[Callable[[HubGGUF], bool], ...] = (
        lambda model: wanted in (model.stem.casefold(), f"{model.stem}.gguf".casefold()) or model.has(wanted),
        lambda model: HubGGUF(PurePosixPath(model.stem).name, model.row).has(wanted),
        lambda model: wanted == model.quantization.casefold(),
        lambda model: _has_word(model.stem.casefold(), wanted),
    )
    if not choice and len(models) == 1:
        return models[0]
    for fits in ways if choice else ():
        if found := [model for model in models if fits(model)]:
            if len(found) == 1:
                return found[0]
            what = f"{repo} has several GGUF models that {shown(choice)} may mean"
            raise _undecided(what, repo, found, models)
    what = f"has no GGUF model {shown(choice)}" if choice else f"has {len(models)} GGUF models"
    raise _undecided(f"{repo} {what}", repo, models, models)


def _undecided(what: str, repo: str, found: Sequence[HubGGUF], models: Sequence[HubGGUF]) -> CheckpointError:
    """``found``: the choices among all ``models``."""
    quantizations = Counter(each.quantization for each in models)
    names = ", ".join(_called(repo, model, quantizations) for model in found[:_LISTED])
    more = f" or {len(found) - _LISTED} others" if len(found) > _LISTED else ""
    hint = f"Choose {names}{more}." if names else "Choose another repository."
    return CheckpointError(what, hint=hint)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9_])", text) is not None
