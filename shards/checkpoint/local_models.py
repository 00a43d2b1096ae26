"""The models on this machine, by name: GGUF files, HuggingFace directories, what the hub's cache and the
swarm's own cache hold whole.

A listing reads the folders and nothing else: no file is opened before its name is asked for, or before
somebody wants to know what can run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from ...swarm.errors import SwarmError
from ...swarm.names import matching, near_names
from ...swarm.runtime.state_files import state_folder
from ..formats.files.mapped_file import MappedFile
from ..formats.files.numbered import numbered
from ..formats.gguf.header import GGUFHeader
from ..formats.gguf.reader import gguf_models, is_gguf
from ..formats.not_a_model import is_other_format, is_pipeline, no_model_error
from ..pieces.cache import PieceCache
from ..pieces.hashing import model_files
from .checkpoint import directory_name
from .hub_gguf import called, gguf_of
from .opening import check_model

MAX_MODELS = 1000
"""One folder has at most this many models: a folder with more entries is not a folder of models."""
MAX_NEAR = 16
"""At most this many models of near names, and as many others, are opened to see which of them run."""
_DEPTH = 2  # folder/NAME/config.json, folder/OWNER/NAME/config.json
_MAX_TITLE = 128


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """``name``: what a node calls it that serves it. ``path``: what ``open_checkpoint`` takes. ``kind``:
    ``gguf``, ``huggingface``, ``hub`` (its cache) or ``fetched`` (from peers). ``root``: of the manifest of
    fetched weights, else "". ``problem``: why it cannot run, as far as that was looked for, else "";
    ``hint``: what to do about it."""

    name: str
    path: Path
    kind: str
    nbytes: int
    root: str = ""
    problem: str = ""
    hint: str = ""

    def with_problem(self, error: SwarmError) -> ModelFiles:
        return replace(self, problem=error.message, hint=error.hint)


class LocalModels:
    """``folders``: where people put models. ``hub_cache``: huggingface_hub's. ``fetched``: the models that
    peers sent. What cannot be read is left out: a folder that is not there holds no models."""

    def __init__(
        self, folders: Sequence[Path] = (), hub_cache: Path | None = None, fetched: PieceCache | None = None
    ) -> None:
        self._folders = folders
        self._hub_cache = hub_cache
        self._fetched = fetched

    def models(self) -> list[ModelFiles]:
        """Complete models, by name; those of earlier folders before those of later ones."""
        return [model for model in self._all() if not model.problem]

    def checked(self) -> list[ModelFiles]:
        """As ``models``, and what lies beside them in the folders and is no model, or not all of one. Opens
        all files for their headers, which takes some milliseconds each, and says of each model that cannot
        run why."""
        return [_checked(model) for model in self._all()]

    def _all(self) -> list[ModelFiles]:
        found = [model for folder in self._folders for model in _in_folder(folder, _DEPTH)][:MAX_MODELS]
        if self._hub_cache is not None:
            found += _in_hub_cache(self._hub_cache)
        if self._fetched is not None:
            found += [
                ModelFiles(model.name, model.path, "fetched", model.nbytes, model.root)
                for model in self._fetched.models()
                if model.whole
            ]
        once: dict[Path, ModelFiles] = {}
        for model in found:
            once.setdefault(model.path, model)
        return sorted(once.values(), key=lambda model: model.name)

    def broken(self, name: str) -> ModelFiles | None:
        """What is called ``name`` here and is no model, or not all of one; None if there is nothing."""
        found = [model for model in self._all() if model.problem]
        names = matching(name, (model.name for model in found))
        return next((model for model in found if model.name in names), None)

    def near(self, name: str) -> list[str]:
        """Names of some models that run, those that ``name`` may be a misspelling of before others."""
        by_name = {model.name: model for model in reversed(self.models())}
        names = list(dict.fromkeys((*near_names(name, by_name, MAX_NEAR), *list(by_name)[:MAX_NEAR])))
        return [each for each in names if _runs(by_name[each])]

    def find(self, name: str) -> list[ModelFiles]:
        """The models that ``name`` means: by file or directory, else by the title inside a GGUF file."""
        models = self.models()
        if names := set(matching(name, (model.name for model in models))):
            return [model for model in models if model.name in names]
        titles = {model.path: gguf_title(model.path) for model in models if model.kind == "gguf"}
        meant = set(matching(name, filter(None, titles.values())))
        return [model for model in models if titles.get(model.path) in meant]


def default_local_models() -> LocalModels:
    """``models`` in the state folder ($SWARM_NODE_HOME, else ~/.swarm-node), huggingface_hub's cache, and
    what peers sent."""
    return LocalModels([models_folder()], hub_cache(), PieceCache(weights_folder()))


def models_folder() -> Path:
    """Where a person puts models to call them by name."""
    return state_folder() / "models"


def weights_folder() -> Path:
    """The folder of the weights that peers sent."""
    return state_folder() / "weights"


def hub_cache() -> Path:
    """As huggingface_hub finds it, which is not imported for that: it costs half a second."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or cache).expanduser() / "hub"


def gguf_title(path: Path) -> str:
    """``general.name`` of a GGUF file; "" if it has none, or if the file is not GGUF."""
    with suppress(SwarmError, OSError):
        file = MappedFile(path)
        try:
            title = GGUFHeader(file).metadata.get("general.name")
        finally:
            file.close()
        if isinstance(title, str) and title.isprintable() and len(title) <= _MAX_TITLE:
            return title
    return ""


def _checked(model: ModelFiles) -> ModelFiles:
    if not model.problem:
        try:
            check_model(model.path)
        except SwarmError as error:
            return model.with_problem(error)
    return model


@lru_cache(maxsize=MAX_MODELS)
def _runs(model: ModelFiles) -> bool:
    """Remembered: whoever waits for a model looks for near names twice a second."""
    return not _checked(model).problem


def _in_folder(folder: Path, depth: int) -> Iterator[ModelFiles]:
    for path, name in gguf_models(folder, within=depth == 1).items():
        yield _with_size(ModelFiles(name, path, "gguf", 0))
    for entry in _entries(folder):
        if entry.is_dir():
            if (entry / "config.json").is_file() and not is_gguf(entry):
                yield _directory(entry, "huggingface")
                continue
            if is_other_format(entry):
                lacking = ModelFiles(entry.name, entry, "huggingface", _bytes_there(entry))
                yield lacking.with_problem(no_model_error(entry, "no config.json"))
            if depth > 1 and not is_pipeline(entry):  # the parts of a pipeline are no models
                yield from _in_folder(entry, depth - 1)


def _in_hub_cache(cache: Path) -> Iterator[ModelFiles]:
    """Each model's snapshot that its ``main`` pointed to last."""
    for repo in _entries(cache):
        if repo.name.startswith("models--"):
            with suppress(OSError, UnicodeDecodeError):
                commit = (repo / "refs" / "main").read_text().strip()
                snapshot = repo / "snapshots" / commit
                if not commit or snapshot.parent != repo / "snapshots":
                    continue
                found = [_with_size(each) for each in _hub_gguf(snapshot)]
                if (snapshot / "tokenizer.json").is_file() and not is_gguf(snapshot):
                    found.append(_directory(snapshot, "hub"))
                yield from (model for model in found if not model.problem)  # else the rest is fetched


def _hub_gguf(snapshot: Path) -> list[ModelFiles]:
    """The GGUF models in a snapshot, called as the hub's are."""
    paths = (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf"))
    models, repo = gguf_of(islice(paths, MAX_MODELS)), directory_name(snapshot)
    return [ModelFiles(called(repo, each, models), snapshot / each.paths[0], "hub", 0) for each in models]


def _directory(path: Path, kind: str) -> ModelFiles:
    return _with_size(ModelFiles(directory_name(path), path, kind, 0))


def _with_size(model: ModelFiles) -> ModelFiles:
    """With a problem where not all of its files are there."""
    try:
        return replace(model, nbytes=sum(map(_size, model_files(model.path).values())))
    except SwarmError as error:
        return replace(model.with_problem(error), nbytes=_bytes_there(model.path))


def _bytes_there(path: Path) -> int:
    """Of the files that are there, where some of a model are missing. ``path``: a folder, or any file."""
    row = numbered(path.name)
    files = (
        islice(path.rglob("*"), MAX_MODELS)
        if path.is_dir()
        else map(path.with_name, row.names if row else [])
    )
    return sum(_size(file) for file in files if file.is_file())


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:MAX_MODELS]
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
