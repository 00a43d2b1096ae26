"""An invite: one line of text with all that a new member needs, addresses and membership.

    swn1 + base64url (no padding) of
        length of what follows   2 bytes, big-endian
        msgpack [name, authority, seed, from, until, grant, [[public key, maddr, ...], ...]]
        first 4 bytes of SHA-256 of all before

``authority``, ``seed`` and ``grant`` are empty for a swarm without a key; see ``membership`` for their
meaning. An invite to a swarm with a key is a secret: everybody who has it can join until it ends.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from ..errors import RemoteProtocolError, UsageError
from ..identity import SIGNATURE_BYTES, Identity, peer_id_of, public_key_of
from ..protocol.wire import refuse_extension
from ..transport.addresses import PeerAddress
from .membership import Grant, KeyedSwarm, Membership, NamedSwarm, grant, moment, swarm_name, time_problem

PREFIX = "swn1"
MAX_INVITE_CHARS = 4096
MAX_PEERS = 8
MAX_PEER_MADDRS = 4
MAX_MADDR_CHARS = 320

_CHECK_BYTES = 4
_LENGTH_BYTES = 2
_LAST_S = 2**40  # far beyond any year that can be shown
_FORM = re.compile(r"[A-Za-z0-9_-]*")
_MADDR = re.compile(rf"/[!-~]{{1,{MAX_MADDR_CHARS - 1}}}")
_WHOLE = "Copy it again, from swn1 to its last character, in one line."


@dataclass(frozen=True, slots=True)
class Invite:
    """``authority``: the public key of a swarm that has one, else b"" and ``grant`` None.

    ``peers``: where members listen; may be empty, since those of one LAN find each other.
    """

    name: str = ""
    authority: bytes = b""
    grant: Grant | None = None
    peers: tuple[PeerAddress, ...] = ()

    @property
    def ends(self) -> float:
        """Unix time, or inf."""
        return math.inf if self.grant is None or not self.grant.ends else float(self.grant.ends)

    def membership(self, now: float) -> Membership | None:
        """The membership of a process that joins by this invite; None: the unnamed swarm without a key.

        Raises UsageError if it has ended, has not begun, or was not made by the swarm's key.
        """
        if self.grant is None:
            return NamedSwarm(self.name) if self.name else None
        swarm = KeyedSwarm(self.name, self.authority, given=self.grant)
        if not swarm.verify(self.grant):
            raise UsageError(
                "the invite was not made by the key of the swarm that it names",
                hint="Ask a member of the swarm for another (swarm-node invite).",
            )
        if problem := time_problem(self.grant.begins, self.grant.ends, now):
            raise UsageError(
                f"the invite {problem}",
                hint="Ask a member for a new one (swarm-node invite), or set this computer's clock right.",
            )
        return swarm

    def __str__(self) -> str:
        """The line of text. If the addresses do not all fit, the first are kept."""
        peers: dict[str, list[str]] = {}
        for peer in self.peers:
            if peer.peer_id in peers or len(peers) < MAX_PEERS:
                peers.setdefault(peer.peer_id, []).append(peer.maddr)
        seed, begins, ends, signature = (
            (b"", 0, 0, b"")
            if self.grant is None
            else (self.grant.seed, self.grant.begins, self.grant.ends, self.grant.signature)
        )
        listed = [[public_key_of(peer_id), *maddrs[:MAX_PEER_MADDRS]] for peer_id, maddrs in peers.items()]
        while True:
            body = msgpack.packb([self.name, self.authority, seed, begins, ends, signature, listed])
            data = len(body + bytes(_CHECK_BYTES)).to_bytes(_LENGTH_BYTES) + body
            data += hashlib.sha256(data).digest()[:_CHECK_BYTES]
            text = PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")
            if len(text) <= MAX_INVITE_CHARS:
                return text
            listed.pop()

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Raises UsageError that says what is wrong with the text. Its dates are not looked at."""
        text = "".join(text.split())  # mail programs break long lines
        if not text.startswith(PREFIX):
            later = re.match(r"swn\d", text) is not None
            raise UsageError(
                "the invite is of a later version"
                if later
                else f"{text[:20]!r} is neither an invite nor a file with one",
                hint="Install a newer swarm-node." if later else f"An invite begins with {PREFIX}. {_WHOLE}",
            )
        if len(text) > MAX_INVITE_CHARS:
            raise UsageError(
                f"the invite has {len(text)} characters, more than {MAX_INVITE_CHARS}", hint=_WHOLE
            )
        coded = text.removeprefix(PREFIX)
        good = _FORM.match(coded)
        end = 0 if good is None else good.end()
        if end < len(coded):
            place = end + len(PREFIX)
            raise UsageError(
                f"the invite has the character {coded[end]!r} at place {place + 1}, which is not allowed",
                hint=_WHOLE,
            )
        data = _decoded(coded)
        length = int.from_bytes(data[:_LENGTH_BYTES])
        if len(data) < _LENGTH_BYTES or len(data) < _LENGTH_BYTES + length:
            whole = -(-(_LENGTH_BYTES + length) * 4 // 3) + len(PREFIX)
            of = f" of {whole}" if len(data) >= _LENGTH_BYTES else ""
            raise UsageError(f"the invite is cut off: it has {len(text)}{of} characters", hint=_WHOLE)
        body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        longer = len(data) > _LENGTH_BYTES + length
        if longer or length < _CHECK_BYTES or hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
            raise UsageError("the invite is damaged: some character of it was changed or added", hint=_WHOLE)
        return _read(body[_LENGTH_BYTES:])


def make_invite(
    name: str, authority: Identity | None, peers: Sequence[PeerAddress], now: float, lasts_s: float = math.inf
) -> Invite:
    """``authority``: the swarm's key, None if it has none. ``lasts_s``: seconds from now, or inf."""
    name = swarm_name(name)
    if authority is None:
        return Invite(name, peers=tuple(peers))
    tag = KeyedSwarm(name, authority.public_bytes).tag
    return Invite(name, authority.public_bytes, grant(authority, tag, now, now + lasts_s), tuple(peers))


def describe_end(invite: Invite) -> str:
    """How long the invite is valid, in words for people."""
    return "for ever" if math.isinf(invite.ends) else f"until {moment(invite.ends)}"


def _decoded(coded: str) -> bytes:
    whole = coded[: len(coded) - (len(coded) % 4 == 1)]  # one character more codes nothing
    try:
        return base64.urlsafe_b64decode(whole + "=" * (-len(whole) % 4))
    except (binascii.Error, ValueError):
        return b""


def _read(body: bytes) -> Invite:
    strange = UsageError(
        "the invite holds what this version does not understand", hint="Use the same version of swarm-node."
    )
    try:
        parts = msgpack.unpackb(
            body, ext_hook=refuse_extension, max_array_len=16, max_map_len=0, max_str_len=MAX_INVITE_CHARS
        )
    except (ValueError, TypeError, msgpack.UnpackException):
        raise strange from None
    kinds = (str, bytes, bytes, int, int, bytes, list)
    if type(parts) is not list or tuple(map(type, parts)) != kinds:
        raise strange
    name, authority, seed, begins, ends, signature, listed = parts
    if (len(authority), len(seed), len(signature)) not in ((0, 0, 0), (32, 32, SIGNATURE_BYTES)):
        raise strange
    if not (0 <= begins <= _LAST_S and 0 <= ends <= _LAST_S) or len(listed) > MAX_PEERS:
        raise strange
    try:
        peers = tuple(address for peer in listed for address in _peer(peer))
        name = swarm_name(name)
    except (UsageError, RemoteProtocolError, ValueError):
        raise strange from None
    return Invite(name, authority, Grant(seed, begins, ends, signature) if seed else None, peers)


def _peer(value: object) -> list[PeerAddress]:
    if not isinstance(value, list) or not 1 < len(value) <= 1 + MAX_PEER_MADDRS:
        raise ValueError("not a peer")
    public, *maddrs = value
    if type(public) is not bytes or not all(
        type(maddr) is str and _MADDR.fullmatch(maddr) for maddr in maddrs
    ):
        raise ValueError("not a peer")
    peer_id = peer_id_of(public)
    return [PeerAddress.parse(f"{maddr}/p2p/{peer_id}") for maddr in maddrs]
