"""The TOML file in which options may stand: ``config.toml`` in the state folder, or that of ``--config``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from ....swarm.errors import UsageError
from ....swarm.runtime.given_files import read_given
from ....swarm.runtime.state_files import state_folder

MAX_BYTES = 1 << 20
"""Bytes of such a file at most: a thousand times what it takes to set every option."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """``common``: keys above all tables. ``tables``: keys of one command, by its name. None is checked yet.
    ``lines``: where each key stands in its table, counted from 1, if it is written as most are.
    ``everyone_writes``: any user of the machine may change it, as far as its mode says."""

    path: Path
    lines: Mapping[tuple[str, str], int] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    everyone_writes: bool = False

    def place(self, key: str, table: str = "") -> str:
        """Where a key stands, for people: file, line and table."""
        line = self.lines.get((table, key))
        return f"{self.path}{f', line {line}' if line else ''}{f', [{table}]' if table else ''}, {key}"


def default_path() -> Path:
    return state_folder() / "config.toml"


def read_config(given: str | None) -> ConfigFile | None:
    """The file of that name; without a name the default one, and None if that is not there. Raises
    UsageError: it cannot be read, or it is no TOML."""
    path = default_path() if given is None else Path(given).expanduser()
    try:
        data = read_given(path, MAX_BYTES)
        mode = path.stat().st_mode
    except FileNotFoundError:
        if given is None:
            return None
        raise UsageError(
            f"there is no file {path}",
            hint=f"Write one: `swarm-node config init --config {quote(str(path))}`",
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    text, content = _parse(data, path)
    return ConfigFile(
        path,
        _lines(text),
        common={key: value for key, value in content.items() if not isinstance(value, dict)},
        tables={key: value for key, value in content.items() if isinstance(value, dict)},
        everyone_writes=os.name == "posix" and bool(mode & 0o002) and path.is_file(),
    )


def _parse(data: bytes, path: Path) -> tuple[str, dict[str, Any]]:
    import tomllib  # here: most commands find no file

    try:
        text = data.decode()
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise UsageError(
            f"{path} is not TOML: {error}",
            hint='A line of it reads KEY = VALUE, such as port = 8000 or swarm = "home".',
        ) from None


def _lines(text: str) -> dict[tuple[str, str], int]:
    inside = ""
    found: dict[tuple[str, str], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*[\"']?([\w-]+)[\"']?\s*\]", line):
            inside = header[1]
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*[=.]", line):
            found.setdefault((inside, key[1]), number)
    return found
