"""Answers of the HuggingFace hub: of each no more is read than was asked for, and none may be slow for long.

The bodies of errors and of redirects are not read at all, and nothing is decoded: both may be endless.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import get_session

from ...swarm.errors import CheckpointError, NetworkError
from ..formats.values.shown import shown
from ..pieces.file_hashes import check_stopped

_TIMEOUT = 30.0
"""Seconds to wait for the next bytes of an answer."""
_LOOK_S = 30.0
"""An answer's speed is looked at each time that so many seconds have gone."""
_LEAST_BYTES = 30 << 10
"""So many bytes come in ``_LOOK_S`` seconds, or the answer is given up: 1 KiB a second."""
_MAX_REDIRECTS = 10
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Status codes of a hub that may answer a later try."""
START_AGAIN = "Start again; if that does not help, download the model and give its path."


class MissingFileError(CheckpointError):
    """The repository exists, and has no file of this name."""


class HubBusyError(NetworkError):
    """``retry_after``: seconds that the hub has asked for, or 0."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message, hint="Check the connection and start again: what came is kept.")
        self.retry_after = retry_after


def hub_headers() -> dict[str, str]:
    """What goes with each request. huggingface_hub's own function would first ask the hub for a list, of any
    length, of programs that may have started this one."""
    token = None if huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else huggingface_hub.get_token()
    return {"user-agent": f"swarm-node; hf_hub/{huggingface_hub.__version__}"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """``where``: what was asked for, in words. ``chain``: the headers of each redirect and of the answer."""

    where: str
    status: int
    chain: tuple[Mapping[str, str], ...]
    chunks: Iterator[bytes]

    @property
    def headers(self) -> Mapping[str, str]:
        return self.chain[-1]

    def body(self, most: int) -> Iterator[bytes]:
        """The body as it comes. NetworkError beyond ``most`` bytes, HubBusyError for a slow one."""
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise NetworkError(
                f"the hub sent an encoding that was not asked for: {self.where}", hint=START_AGAIN
            )
        done, looked_at, done_then = 0, time.monotonic(), 0
        for chunk in self.chunks:
            check_stopped()
            done += len(chunk)
            if done > most:
                raise NetworkError(f"the hub sent more than {most} bytes: {self.where}", hint=START_AGAIN)
            yield chunk
            if done < most and (now := time.monotonic()) - looked_at >= _LOOK_S:
                if done - done_then < _LEAST_BYTES:
                    raise HubBusyError(f"the hub sends less than 1 KiB a second: {self.where}")
                looked_at, done_then = now, done

    def raise_for_status(self, repo: str) -> None:
        """The error that an answer of 400 or more means, by its headers."""
        code, said = self.headers.get("X-Error-Code", ""), self.headers.get("X-Error-Message", "")
        if self.status in _BUSY:
            raise HubBusyError(f"the hub is busy ({self.status}): {self.where}", _retry_after(self.headers))
        if code == "GatedRepo":
            raise CheckpointError(
                f"{repo} is gated on the HuggingFace hub",
                hint="Accept its terms on its page, then set HF_TOKEN or run `hf auth login`.",
            )
        if code == "RepoNotFound" or (self.status == 401 and not said.startswith("Invalid credentials")):
            raise no_such_model(repo)
        if code == "EntryNotFound":
            raise MissingFileError(
                f"the HuggingFace hub does not have {self.where}",
                hint="Wanted: config.json and safetensors files, or GGUF files.",
            )
        if self.status >= 400:
            why = f"{self.status} {shown(said[:200])}" if said else f"{self.status}"
            raise NetworkError(
                f"cannot fetch {self.where}: the hub answers {why}",
                hint="Check the connection and try again.",
            )


def no_such_model(repo: str) -> CheckpointError:
    return CheckpointError(
        f"there is no model {repo}, neither here as a file nor on the HuggingFace hub",
        hint="Check the name; for a private model set HF_TOKEN.",
    )


@contextmanager
def hub_answer(url: str, headers: Mapping[str, str], where: str) -> Iterator[HubAnswer]:
    """The answer to a GET, its body still to come. HubBusyError where the connection breaks, also while the
    body comes; NetworkError for redirects that lead nowhere."""
    headers = {**headers, "Accept-Encoding": "identity"}
    chain: list[Mapping[str, str]] = []
    try:
        while len(chain) <= _MAX_REDIRECTS:
            with _asked(url, headers) as (response, chunks):
                chain.append(response.headers)
                leads_to = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or not leads_to:
                    yield HubAnswer(where, response.status_code, tuple(chain), chunks)
                    return
            before, url = url, _joined(url, leads_to, where)
            if _origin(url) != _origin(before):  # a token is nobody's but the hub's
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    except (hub_errors.HTTPError, OSError) as error:  # timeouts, resets, bodies that break off
        raise HubBusyError(f"the connection to the hub breaks ({first_line(error)}): {where}") from None
    raise NetworkError(f"the hub leads in a circle: {where}", hint=START_AGAIN)


@contextmanager
def _asked(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """By httpx or requests: whichever huggingface_hub uses."""
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream(
            "GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=False
        ) as response:
            yield response, response.iter_raw()
    else:
        with session.get(
            url, headers=headers, timeout=_TIMEOUT, stream=True, allow_redirects=False
        ) as response:
            yield response, response.iter_content(1 << 16)


def _joined(url: str, leads_to: str, where: str) -> str:
    """Where a redirect leads. NetworkError for what is no address."""
    try:
        joined = urljoin(url, leads_to)
        scheme, host, _ = _origin(joined)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host or not (joined.isascii() and joined.isprintable()):
        raise NetworkError(f"the hub leads to {shown(leads_to[:200])}: {where}", hint=START_AGAIN)
    return joined


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _retry_after(headers: Mapping[str, str]) -> float:
    said = headers.get("Retry-After", "")
    return float(said) if re.fullmatch(r"[0-9]{1,6}", said) else 0.0


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
