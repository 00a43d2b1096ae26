"""Membership of a swarm: its name and key, and the credentials by which members know each other, offline.

    authority key ──signs──▶ invite key (until when) ──signs──▶ PeerID of a member

The authority's public key is part of the swarm's tag, so every member can check every credential without a
question to others. A credential is of no use to another peer: it names the PeerID whose key the transport's
handshake proves. A swarm with a name and no key has a tag only, which keeps it apart and lets everybody in.

    tag         first 16 bytes of SHA-256("swarm-node swarm 1\\n" + authority (32 bytes or none) + name)
    grant       Ed25519 of the authority over "swarm-node invite 1\\n" + tag + invite key + from + until
    credential  01 + invite key (32) + from (8) + until (8) + grant (64) + Ed25519 (64) of the invite key over
                "swarm-node member 1\\n" + tag + PeerID (base58, 52)

``from`` and ``until`` are big-endian seconds of Unix time; an ``until`` of 0 is for ever.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
import threading
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from ..errors import NotAdmittedError, UsageError
from ..fairness.recent import RecentMap
from ..identity import SIGNATURE_BYTES, Identity, is_peer_id, verify_key
from ..types import short_peer_id

CLOCK_SLACK_S = 120.0
"""Clocks may differ by this many seconds before a grant counts as expired, or as not begun."""
RENEWAL_S = 24 * 3600.0
"""A grant that a holder of the key makes for itself lasts this many seconds. It makes the next at half of
that."""
MAX_NAME_CHARS = 64
MAX_CREDENTIAL_BYTES = 512
"""Bytes of a credential at most, also in later versions."""

_TIMES = struct.Struct("!QQ")
_CREDENTIAL_BYTES = 1 + 32 + _TIMES.size + 2 * SIGNATURE_BYTES
_VERSION = b"\x01"
_LAST_YEAR_S = 253_402_300_799  # of the year 9999, the last that can be shown
_REMEMBERED = 4096  # credentials found good: a member shows its own on every stream and entry
_NO_KEY = bytes(32)


class Membership(Protocol):
    """One swarm, as a member of it sees it."""

    @property
    def name(self) -> str:
        """For people; may be empty."""

    @property
    def tag(self) -> str:
        """The swarm as 32 hexadecimal digits, equal for all of its members and different in every other
        swarm."""

    @property
    def ends(self) -> float:
        """When our own membership ends, Unix time or inf."""

    def credential(self, peer_id: str, now: float) -> bytes:
        """What proves to others that ``peer_id``, our own, is a member; at most MAX_CREDENTIAL_BYTES.

        ``now``: Unix time. Raises NotAdmittedError once our own membership is over.
        """

    def check(self, peer_id: str, credential: bytes, now: float) -> float:
        """Until when (Unix time, or inf) ``peer_id``, proven by the transport, is a member.

        Raises NotAdmittedError if the peer is not a member. The message may be told to the peer.
        """


@dataclass(frozen=True, slots=True)
class Grant:
    """An invite key that the swarm's key has signed. ``seed`` is secret: everybody who has it can join.

    ``begins`` and ``ends``: whole seconds of Unix time; ``ends`` 0 is for ever.
    """

    seed: bytes
    begins: int
    ends: int
    signature: bytes


def grant(authority: Identity, tag: str, begins: float, ends: float = math.inf) -> Grant:
    """A new invite key, signed."""
    invite = Identity(secrets.token_bytes(32))
    first, last = int(begins), 0 if math.isinf(ends) else int(ends)
    return Grant(invite.seed, first, last, authority.sign(_grant_text(tag, invite.public_bytes, first, last)))


def swarm_name(text: str) -> str:
    """A swarm's name in its one form. Raises UsageError for a text that cannot be a name."""
    name = unicodedata.normalize("NFC", text.strip())
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise UsageError(
            f"{text[:80]!r} cannot be the name of a swarm",
            hint=f"A name has at most {MAX_NAME_CHARS} printable characters.",
        )
    return name


def swarm_tag(name: str, authority: bytes = b"") -> str:
    """``authority``: the public key of a swarm that has one."""
    text = b"swarm-node swarm 1\n" + (authority or _NO_KEY) + name.encode()
    return hashlib.sha256(text).digest()[:16].hex()


class NamedSwarm:
    """Membership of a swarm that has only a name: it is kept apart from others, and everybody may join."""

    def __init__(self, name: str) -> None:
        self.name = swarm_name(name)
        if not self.name:
            raise UsageError("the swarm's name is empty", hint="Leave --swarm out for the unnamed swarm.")
        self.tag = swarm_tag(self.name)
        self.ends = math.inf

    def credential(self, peer_id: str, now: float) -> bytes:
        return b""

    def check(self, peer_id: str, credential: bytes, now: float) -> float:
        return math.inf  # every peer that says the tag is a member


class KeyedSwarm:
    """Membership of a swarm with a key. Give the key itself (``holder``), or a grant of it.

    ``authority``: the key's public half. A holder makes its own grants; one without either can check others
    and has no credential. Threads may share one.
    """

    def __init__(
        self, name: str, authority: bytes, *, given: Grant | None = None, holder: Identity | None = None
    ) -> None:
        self.name = swarm_name(name)
        self.authority = authority
        self.tag = swarm_tag(self.name, authority)
        self._given = given
        self._holder = holder
        self._made: tuple[float, Grant] | None = None  # by ourselves, and when
        self._own: tuple[str, Grant, bytes] | None = None
        self._good: RecentMap[bytes, None] = RecentMap(_REMEMBERED)
        self._lock = threading.Lock()

    @property
    def holder(self) -> Identity | None:
        """The swarm's key if we have it: a process that has the key can invite others."""
        return self._holder

    @property
    def ends(self) -> float:
        return math.inf if self._given is None or not self._given.ends else float(self._given.ends)

    def credential(self, peer_id: str, now: float) -> bytes:
        current = self._grant(now)
        if self._own is None or self._own[:2] != (peer_id, current):
            invite = Identity(current.seed)
            self._own = (
                peer_id,
                current,
                b"".join(
                    (
                        _VERSION,
                        invite.public_bytes,
                        _TIMES.pack(current.begins, current.ends),
                        current.signature,
                        invite.sign(_member_text(self.tag, peer_id)),
                    )
                ),
            )
        return self._own[2]

    def check(self, peer_id: str, credential: bytes, now: float) -> float:
        whom = f"peer {short_peer_id(peer_id)}"
        if not credential:
            raise NotAdmittedError(
                f"{whom} has no credential, and this swarm admits members only",
                hint="Join it by an invite of one of its members: --join INVITE.",
            )
        if len(credential) != _CREDENTIAL_BYTES or credential[:1] != _VERSION:
            raise NotAdmittedError(
                f"{whom} has a credential that this version cannot read",
                hint="Use the same version of swarm-node on both sides.",
            )
        invite, rest = credential[1:33], credential[33:]
        begins, ends = _TIMES.unpack(rest[: _TIMES.size])
        granted, signed = rest[_TIMES.size : -SIGNATURE_BYTES], rest[-SIGNATURE_BYTES:]
        digest = hashlib.sha256(credential + peer_id.encode(errors="replace")).digest()
        with self._lock:
            known = digest in self._good
            if known:
                self._good[digest] = None
        if not known:
            if not verify_key(self.authority, _grant_text(self.tag, invite, begins, ends), granted):
                raise NotAdmittedError(
                    f"{whom} has a credential that is not of this swarm's key",
                    hint="Both sides need the same --swarm name and key, or an invite to this swarm.",
                )
            if not is_peer_id(peer_id) or not verify_key(invite, _member_text(self.tag, peer_id), signed):
                raise NotAdmittedError(
                    f"{whom} has a credential that belongs to another peer",
                    hint="A credential counts for one identity only: join by an invite of your own.",
                )
            with self._lock:
                self._good[digest] = None
        if problem := time_problem(begins, ends, now):
            raise NotAdmittedError(
                f"the membership of {whom} {problem}",
                hint="It needs a new invite (swarm-node invite), or one of the two clocks is wrong.",
            )
        return float(ends) if ends else math.inf

    def _grant(self, now: float) -> Grant:
        if self._holder is not None:
            if self._made is None or not 0 <= now - self._made[0] < RENEWAL_S / 2:
                self._made = (now, grant(self._holder, self.tag, now, now + RENEWAL_S))
            return self._made[1]
        if self._given is None:
            raise NotAdmittedError(
                "this process has no invite to the swarm and no key of it",
                hint="Give --join INVITE, or --swarm-key FILE.",
            )
        problem = time_problem(self._given.begins, self._given.ends, now)
        if problem or now > self.ends:  # a little sooner than others think so
            problem = problem or f"ended on {moment(self._given.ends)}"
            raise NotAdmittedError(
                f"the invite to swarm {self.name or self.tag[:8]!r} {problem}",
                hint="Ask a member for a new one (swarm-node invite), or set this computer's clock right.",
            )
        return self._given

    def verify(self, given: Grant) -> bool:
        """Whether the grant was made by this swarm's key."""
        public = Identity(given.seed).public_bytes
        return verify_key(
            self.authority, _grant_text(self.tag, public, given.begins, given.ends), given.signature
        )


def time_problem(begins: int, ends: int, now: float) -> str:
    """Why a grant does not count now, to follow its name in a sentence; empty if it does."""
    if begins - CLOCK_SLACK_S > now:
        return f"begins on {moment(begins)}, but the clock here says {moment(now)}"
    if ends and ends + CLOCK_SLACK_S < now:
        return f"ended on {moment(ends)}, and the clock here says {moment(now)}"
    return ""


def moment(seconds: float) -> str:
    """Unix time for people: ``2026-11-21 20:15 UTC``."""
    bounded = min(max(seconds, 0.0), float(_LAST_YEAR_S))
    return datetime.fromtimestamp(bounded, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _grant_text(tag: str, invite: bytes, begins: int, ends: int) -> bytes:
    return b"swarm-node invite 1\n" + bytes.fromhex(tag) + invite + _TIMES.pack(begins, ends)


def _member_text(tag: str, peer_id: str) -> bytes:
    return b"swarm-node member 1\n" + bytes.fromhex(tag) + peer_id.encode()
