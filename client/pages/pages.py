"""The files of this room as a browser gets them. A page may run the scripts beside it and ask the server that
sent it, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from ..http.call import HttpCall
from ..http.endpoint import Handler
from ..http.errors import ApiError

PREFIX = "/pages"
"""The path that all files are under. Pages name them relatively, so that a proxy may put a path before it."""

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
"""Media types by the end of a file's name. Files with another end are not sent."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no text is ever read as HTML
)


@dataclass(frozen=True, slots=True)
class PageFile:
    text: str
    media_type: str
    etag: str


def page(path: str) -> Handler:
    """A handler that sends one file of this room, such as ``chat/index.html``."""

    async def send(call: HttpCall) -> None:
        await _send(call, path)

    return send


async def send_file(call: HttpCall) -> None:
    """The file that the path parameter ``file`` names. Raises ApiError 404."""
    await _send(call, call.scope["path_params"]["file"])


async def _send(call: HttpCall, path: str) -> None:
    found = page_files().get(path)
    if found is None:
        raise ApiError(404, f"there is no file {path[:200]!r} here", code="not_found")
    headers = {
        "Content-Type": found.media_type,
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-cache",  # a browser asks each time, and gets a file again once it has changed
        "ETag": found.etag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if found.etag.encode() in dict(call.headers).get(b"if-none-match", b""):
        await call.reply_unchanged(headers)
    else:
        await call.reply(found.text, headers=headers)


@cache
def page_files() -> Mapping[str, PageFile]:
    """Every file that is sent, by its path in this room. They are read once."""
    return dict(_walk(files(__package__), ""))


def _walk(folder: Traversable, before: str) -> list[tuple[str, PageFile]]:
    found: list[tuple[str, PageFile]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{before}{entry.name}/")
        elif media_type := TYPES.get(entry.name.rpartition(".")[2]):
            text = entry.read_text(encoding="utf-8")
            etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
            found.append((before + entry.name, PageFile(text, media_type, etag)))
    return found
