"""A server on 127.0.0.1 that speaks the HuggingFace hub's endpoints, and can be made to fail."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from swarm_node.shards.checkpoint import hub, hub_weights
from swarm_node.shards.pieces import manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some-org/tiny-llama"
PIECE = 16 * 1024


@contextmanager
def serving(directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that everything here asks for models, with nothing fetched yet. Pieces are small, as the models
    are."""
    server = FakeHub(directory)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(manifest, "USUAL_PIECE", PIECE)
    for module in (hub, hub_weights):
        monkeypatch.setattr(module, "FIRST_READ", PIECE)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.with_name("token")))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class FakeHub(ThreadingHTTPServer):
    """Serves one directory as the model ``NAME``. ``requests``: (method, file, Range header) as they came."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self._lock = threading.Lock()
        self.requests: list[tuple[str, str, str | None]] = []
        self.gated = False
        self.tells_sha256 = True
        self.tells_git_hash = True
        self.faults: list[str] = []
        """What goes wrong with the next requests for parts of files, one after the other: see ``Handler``."""
        self.whole_faults: dict[str, list[str]] = {}
        """The same of requests for whole files, by name; that of the list of files is ""."""
        self.strange_paths: list[str] = []
        """What was asked for that is no file's."""
        self.sent_of_endless = 0
        """Bytes of bodies without end that were sent."""
        self.before_part: Callable[[int], object] = lambda number: None
        """Called with the number of each such request, from 0, before it is answered."""
        self._parts = itertools.count()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, object]:
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        return {"id": NAME, "sha": COMMIT, "siblings": [self.entry(path) for path in sorted(files)]}

    def entry(self, path: Path) -> dict[str, object]:
        size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"rfilename": path.relative_to(self.directory).as_posix(), "size": size}
        if path.suffix in (".safetensors", ".gguf") and self.tells_sha256:
            entry["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 134}
        elif self.tells_git_hash:
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest()
        return entry

    def next_fault(self, file: str, part: str | None) -> str:
        if part is None:
            faults = self.whole_faults.get(file, [])
            return faults.pop(0) if faults else ""
        with self._lock:
            number, fault = next(self._parts), self.faults.pop(0) if self.faults else ""
        self.before_part(number)
        return fault

    def bytes_of(self, ending: str) -> int:
        """How many bytes were sent of files whose names end so: of parts, and of whole files."""
        sent = 0
        for method, file, part in self.requests:
            if method == "GET" and file.endswith(ending):
                size = (self.directory / file).stat().st_size
                first, last = map(int, part[6:].split("-")) if part else (0, size - 1)
                sent += min(last, size - 1) - first + 1
        return sent

    def fetched(self) -> set[str]:
        """Files of which more than parts were asked for."""
        return {file for method, file, part in self.requests if method == "GET" and part is None}


class Handler(BaseHTTPRequestHandler):
    """Faults: an answer with another status (``416``, ``429``, ``500``, ``503``, ``whole``: 200), with other
    bytes than its headers say (``shifted``, ``grown``, ``short``, ``long``, ``bytes``), of another file
    (``etag``, ``commit``), in an encoding that was not asked for (``gzip``), one that breaks off (``broken``,
    ``reset``), one that leads to another path (``redirect``), to another host (``elsewhere``) or to itself
    (``circle``). With a status behind them or 200: a body without end (``endless``), one that becomes much
    larger when it is decoded (``bomb``), one that stops after a byte (``drip``)."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if self.path.lower() == f"/api/models/{NAME}?blobs=true":
            fault = self.server.next_fault("", None)
            return self.unbounded(fault) if fault else self.send_json(self.server.listing())
        match = re.fullmatch(rf"/{NAME}/resolve/(main|{COMMIT})/(.+)|/(cdn)/(.+)", unquote(self.path))
        file = match and (match[2] or match[4])
        if match is None or not file:
            self.server.strange_paths.append(self.path)
            return self.refuse(404 if self.path.startswith("/api") else 401, "RepoNotFound")
        if self.server.gated:
            return self.refuse(403, "GatedRepo")
        part = self.headers.get("Range")
        self.server.requests.append((self.command, file, part))
        path = self.server.directory / file
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        data = path.read_bytes()
        size = len(data)
        fault = self.server.next_fault(file, part) if body else ""
        if fault.startswith(("endless", "bomb", "drip")):
            said = {"Content-Range": f"bytes {part[6:]}/{size}"} if part else {}
            return self.unbounded(fault, **self.told(file, path), **said)
        if fault in ("416", "429", "500", "503"):
            return self.refuse(int(fault), "", **({"Retry-After": "7"} if fault == "429" else {}))
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if fault in ("redirect", "elsewhere", "circle"):
            leads_to = self.path if fault == "circle" else f"/cdn/{file}"
            if fault == "elsewhere":
                leads_to = f"http://localhost:{self.server.server_port}{leads_to}"
            return self.refuse(302, "", Location=leads_to, **self.told(file, path))
        if part and fault != "whole":
            first, last = map(int, part.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
            said = f"bytes {first + (fault == 'shifted')}-{first + len(data) - 1}/{size + (fault == 'grown')}"
            self.send_response(206)
            self.send_header("Content-Range", said)
        else:
            self.send_response(200)
        told = self.told(file, path)
        if fault == "etag":
            told = {name: f'"{"7" * 64}"' if "tag" in name.lower() else value for name, value in told.items()}
        if fault == "commit":
            told["X-Repo-Commit"] = "7" * 40
        if fault == "gzip":
            told["Content-Encoding"] = "gzip"
        if fault == "bytes":
            data = bytes(byte ^ 1 for byte in data)
        if fault in ("short", "long"):  # as many bytes as the headers say, other than were asked for
            data = data[:-1] if fault == "short" else data + b"?"
        for name, value in told.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "broken" else data)
        if fault == "broken":
            self.close_connection = True
        return None

    def unbounded(self, fault: str, **headers: str) -> None:
        """A body that is not as long as its headers let expect."""
        kind, _, status = fault.partition(" ")
        if kind == "bomb":
            headers["Content-Encoding"] = "gzip"
        self.send_response(int(status or 200))
        for name, value in {**headers, "Location": "/elsewhere", "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        try:
            if kind == "bomb":
                self.wfile.write(gzip.compress(bytes(1 << 26)))
            elif kind == "drip":
                self.wfile.write(b"{")
                self.connection.recv(1)  # until it is closed
            while kind == "endless" and self.server.sent_of_endless < 1 << 28:
                self.server.sent_of_endless += self.wfile.write(b" " * (1 << 16))
        except OSError:  # closed
            pass

    def told(self, name: str, path: Path) -> dict[str, str]:
        """Headers about a file."""
        content = path.read_bytes()
        if not (name.endswith((".safetensors", ".gguf")) and self.server.tells_sha256):
            return {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        etag = f'"{hashlib.sha256(content).hexdigest()}"'  # a large file
        return {"X-Repo-Commit": COMMIT, "X-Linked-Etag": etag, "ETag": etag}

    def send_json(self, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        headers = {"X-Repo-Commit": COMMIT, **headers}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...
