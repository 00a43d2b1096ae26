"""Files that are one model: each says in its name which of how many it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_FILES = 1024
"""One model has at most this many files; the largest in use have 191."""
_NUMBERED = re.compile(r"(.{1,250})-([0-9]{5})-of-([0-9]{5})(\.gguf|\.safetensors)")


@dataclass(frozen=True, slots=True)
class NumberedFiles:
    """The ``count`` files ``STEM-00001-of-0000N.ENDING`` of one model."""

    stem: str
    count: int
    ending: str

    @property
    def names(self) -> list[str]:
        """The names of all of them, in order."""
        numbers = range(1, self.count + 1)
        return [f"{self.stem}-{number:05}-of-{self.count:05}{self.ending}" for number in numbers]


def numbered(name: str) -> NumberedFiles | None:
    """Those that a file of this name, or path, is one of; None where it has no such numbers."""
    match = _NUMBERED.fullmatch(name)
    if match is None or not 0 < int(match[2]) <= int(match[3]) <= MAX_FILES:
        return None
    return NumberedFiles(match[1], int(match[3]), match[4])


def of_models(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The models that files of these names, or paths, are of, each once: its own name, and the files that it
    should have."""
    models: dict[tuple[str, ...], str] = {}
    for name in names:
        files = numbered(name)
        models[tuple(files.names) if files else (name,)] = files.stem if files else name.rpartition(".")[0]
    return [(model, list(files)) for files, model in models.items()]
