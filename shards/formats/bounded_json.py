"""JSON of files that came with a model: within bounds, before it becomes objects and after.

A few bytes of JSON can become hundreds of bytes of objects, and code that walks a nested value by recursion
may fail. So the reader sets how much there may be, and how deep it may be nested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...swarm.errors import CheckpointError
from .not_a_model import download_hint

MAX_DEPTH = 32
"""At most this many arrays and objects may be nested; files in use have six."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half of a pair."""

Pairs = list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class JsonBounds:
    """``nbytes``: of the text. ``values``: of arrays, objects and their members together; each takes up to
    some 250 bytes of memory. Commas and brackets inside of texts count as well, so it is to be generous."""

    nbytes: int
    values: int


def parse_json(
    text: bytes, bounds: JsonBounds, pairs_hook: Callable[[Pairs], dict[str, Any]] | None = None
) -> Any:
    """The document, whose texts are all valid Unicode. Raises ValueError for a text that is not JSON, or
    beyond the bounds; takes time linear in ``text``. Whole numbers have 4300 digits at most, as Python bounds
    them.
    """
    if len(text) > bounds.nbytes:
        raise ValueError(f"it has more than {bounds.nbytes} bytes")
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > bounds.values:
        raise ValueError(f"it has more than {bounds.values} values")
    try:
        written = text.decode(json.detect_encoding(text))
        document = json.loads(written, object_pairs_hook=pairs_hook)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if is_deeper(document, MAX_DEPTH):
        raise ValueError("its values are nested too deeply")
    if _SURROGATE.search(written):
        # Halves of a pair by themselves are not characters: printing or encoding them fails.
        json.dumps(document, ensure_ascii=False).encode()
    return document


def is_deeper(document: Any, most: int) -> bool:
    """Whether more than ``most`` arrays and objects are inside each other."""
    level = [document]
    for _ in range(most + 1):
        level = [each for each in level if isinstance(each, list | dict)]
        if not level:
            return False
        level = [inner for outer in level for inner in (outer if isinstance(outer, list) else outer.values())]
    return True


def read_json(path: Path, bounds: JsonBounds) -> Any:
    """As ``parse_json``, from a file. CheckpointError for one that cannot be read, or that ``parse_json``
    refuses."""
    content = read_bytes(path, bounds.nbytes)
    try:
        return parse_json(content, bounds)
    except ValueError as error:
        raise CheckpointError(f"{path} is not usable JSON: {error}", hint=download_hint(content)) from None


def read_bytes(path: Path, most: int) -> bytes:
    """All of a file. CheckpointError if it cannot be read, or has more than ``most`` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) > most:
        raise CheckpointError(f"{path} has more than {most} bytes", hint="No model needs such a large file.")
    return content
