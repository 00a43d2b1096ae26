"""A GGUF model: one file, or the parts that it was split into.

Of a split model every part says ``split.no`` (from 0), ``split.count`` and ``split.tensors.count`` (of all
parts together), and only the first has the other metadata (llama.cpp, tools/gguf-split).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ....swarm.errors import CheckpointError
from ..files.mapped_file import MappedFile, PresentBytes
from ..files.numbered import MAX_FILES, numbered, of_models
from ..files.tensor_files import MappedTensors, TensorFiles
from ..not_a_model import file_names, lacks_error, no_model_error
from ..values.fields import Fields
from ..values.shown import shown
from .header import GGUFHeader

_ENDING = ".gguf"
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_BESIDE = re.compile(r"(?i)(.*[-_.])?(mmproj|imatrix)([-_.].*)?")
"""Names of models that are none: such files are published beside one."""
_NAMES = "Give the parts the names under which they were published: NAME-00001-of-00003.gguf."
_TOGETHER = "They are of several models, or damaged: download all parts from one place."
_NAMED = 8
"""A message names at most this many of the models in a folder."""


class GGUFFile(MappedTensors):
    """One file, and its ``header``."""

    def __init__(self, path: Path, presence: PresentBytes | None = None) -> None:
        """``presence``: which bytes are there, where not all are."""
        file = MappedFile(path, presence)
        self.header = GGUFHeader(file)
        super().__init__(file, self.header.tensors, min(self.header.length, file.size))


class GGUFSource(TensorFiles[GGUFFile]):
    """All files of a model, in order. ``header``: the first one's, which has the metadata."""

    def __init__(self, files: Iterable[GGUFFile]) -> None:
        """CheckpointError unless these are the parts of one model, all of them, each in its place."""
        super().__init__(files)
        self.header = self.files[0].header
        try:
            self._check_all()
        except BaseException:
            self.close()
            raise

    def _add(self, file: GGUFFile) -> None:
        number, metadata, first = len(self.files), file.header.metadata, self.files[0].header.metadata
        says = Fields(metadata, file.where)
        if (part := says.integer(_NUMBER, 0, least=0, most=MAX_FILES) + 1) != number:
            raise CheckpointError(
                f"{file.where} is part {part} of a model, by its name part {number}", hint=_NAMES
            )
        for key in metadata:
            if key != _NUMBER and repr(first.get(key, metadata[key])) != repr(metadata[key]):
                raise CheckpointError(
                    f"{file.where} is not of the same model as {self.files[0].where}: they differ in {key}",
                    hint=_TOGETHER,
                )
        if number > 1:  # it says nothing more, and each of many files may say much
            metadata.clear()
        super()._add(file)

    def _check_all(self) -> None:
        where = self.files[0].where
        says = Fields(self.header.metadata, where)
        if (count := says.integer(_COUNT, 1, least=1, most=MAX_FILES)) != len(self.files):
            raise CheckpointError(
                f"{where} is one of {count} parts of a model, by its name of {len(self.files)}", hint=_NAMES
            )
        there = len(self.manifest)
        if (tensors := says.integer(_TENSORS, there)) != there:
            raise CheckpointError(
                f"{where} says that all parts together have {tensors} tensors, they have {there}",
                hint=_TOGETHER,
            )


def open_gguf(path: Path) -> GGUFSource:
    """The model of which ``path`` is any file, or the folder. CheckpointError, UnsupportedModelError."""
    return GGUFSource(GGUFFile(file) for file in gguf_files(path))


def gguf_files(path: Path) -> list[Path]:
    """All files of the model of which ``path`` is any file, or the folder, in order. CheckpointError where a
    file is missing, and for a folder of several models."""
    if path.is_dir():
        models = likely_models(path)
        if not models:
            raise no_model_error(path, "no GGUF file of a model")
        if len(models) > 1:
            raise CheckpointError(
                f"{path} holds {len(models)} GGUF models: {few(list(models.values()))}",
                hint=f"Give the path of one of them: {next(iter(models))}",
            )
        path = next(iter(models))
    row = numbered(path.name)
    if row is None or row.count == 1:
        return [path]
    files = [path.with_name(name) for name in row.names]
    if missing := [file.name for file in files if not file.is_file()]:
        hint = "Download what is missing, too, into the same folder."
        raise lacks_error(path.parent, missing, f"the {row.count} files of {row.stem}", hint)
    return files


def is_gguf(path: Path) -> bool:
    """True for a file, and for a folder with GGUF models and no safetensors files."""
    if path.is_file():
        return True
    return not any(name.endswith(".safetensors") for name in _names(path)) and bool(likely_models(path))


def gguf_models(folder: Path, *, within: bool = True) -> dict[Path, str]:
    """The GGUF models in a folder: the path of a file of each, and its name. ``within``: those in the folders
    in it as well, where the hub has quantizations of several files. A folder that cannot be read has none."""
    found: dict[Path, str] = {}
    for place in (folder, *(_folders(folder) if within else ())):
        names = [name for name in _names(place) if name.endswith(_ENDING) and (place / name).is_file()]
        for model, files in of_models(names):
            found[place / next(name for name in files if name in names)] = model
    return found


def likely_models(folder: Path) -> dict[Path, str]:
    """As ``gguf_models``, without files whose names say that they belong to a model and are none."""
    return {path: name for path, name in gguf_models(folder).items() if not is_beside(name)}


def is_beside(name: str) -> bool:
    """Whether a file is by its name, without number and ending, one that belongs to a model and is none."""
    return _BESIDE.fullmatch(name) is not None


def gguf_name(path: Path) -> str:
    """What the model of a file is called: the file's name without number and ending."""
    row = numbered(path.name)
    return row.stem if row else path.name.removesuffix(_ENDING)


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return file_names(folder)
    except OSError:
        return []


def few(names: list[str]) -> str:
    """Some names of models, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(shown, names[:_NAMED])) + more
