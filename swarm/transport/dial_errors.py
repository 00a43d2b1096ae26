"""Why a dial failed, in words for people and in our error tree; and what p2pd says of it, in these words."""

from __future__ import annotations

import re

from ..errors import NetworkError, NotSpokenError, PeerTimeoutError, PeerUnreachableError
from ..terminal_text import one_line

_ATTEMPT = re.compile(r"\* \[(?P<maddr>[^\]]{0,512})\] (?P<reason>.*)")
_WRONG_ID = re.compile(r"remote key matches ([1-9A-HJ-NP-Za-km-z]{40,128})")
_NOT_LIBP2P = (
    "failed to negotiate security protocol",
    "failed to negotiate stream multiplexer",
    "trailing newline",
)
_NOT_DIRECT = "Of a node that listens directly, too, give the ordinary address, which it prints first."
_SLOW = ("context deadline exceeded", "i/o timeout", "timed out")


def self_dial_error(peer_id: str) -> PeerUnreachableError:
    return PeerUnreachableError(
        f"peer {peer_id} is this process itself", hint="A peer cannot dial its own id."
    )


def not_spoken(peer_id: str, protocol_id: str) -> NotSpokenError:
    return NotSpokenError(
        f"peer {peer_id} is there but does not speak {protocol_id or 'our protocol'}",
        hint=f"It may run another version, or only help peers to find each other. {_NOT_DIRECT}",
    )


def no_address(peer_id: str) -> PeerUnreachableError:
    return PeerUnreachableError(f"no address of peer {peer_id} is known")


def only_by_others(peer_id: str, maddr: str) -> PeerUnreachableError:
    return PeerUnreachableError(
        f"peer {peer_id} can be reached by {_clean(maddr)}, but not over plain TCP",
        hint="A pure-Python peer dials TCP, and relays over TCP; QUIC and WebSockets need p2pd.",
    )


def wrong_peer(maddr: str, found: str, expected: str) -> PeerUnreachableError:
    return PeerUnreachableError(
        f"{_clean(maddr)} is the address of peer {found}, not of {expected}",
        hint="Copy the whole address again; a peer without an identity file has a new id at each start.",
    )


def refused(maddr: str) -> PeerUnreachableError:
    return PeerUnreachableError(
        f"nobody listens at {_clean(maddr)} (connection refused)",
        hint="Check the address, and that the peer is running.",
    )


def no_swarm_peer(maddr: str) -> PeerUnreachableError:
    return PeerUnreachableError(
        f"what answers at {_clean(maddr)} is not a swarm peer",
        hint=f"Check the address and the port. {_NOT_DIRECT}",
    )


def too_slow(maddr: str) -> PeerTimeoutError:
    return PeerTimeoutError(
        f"{_clean(maddr)} did not answer in time",
        hint="Check the address, the peer's firewall and your network.",
    )


def dial_failure(peer_id: str, maddr: str, reason: str) -> PeerUnreachableError:
    return PeerUnreachableError(
        f"cannot reach peer {peer_id} at {_clean(maddr)}: {_clean(reason)}",
        hint="Check the address, also the spelling of a name in it, and this computer's network.",
    )


def dial_error(peer_id: str, text: str, protocol_id: str = "") -> NetworkError:
    """The error for p2pd's answer ``text`` to a request to connect to a peer or open a stream."""
    if "dial to self" in text:
        return self_dial_error(peer_id)
    if "protocols not supported" in text or "protocol not supported" in text:
        return not_spoken(peer_id, protocol_id)
    if "failed to find any peer" in text or "no addresses" in text or "routing: not found" in text:
        return no_address(peer_id)
    attempts = [(match["maddr"], match["reason"]) for match in _ATTEMPT.finditer(text)]
    # p2pd does not retry an address that failed seconds ago; that says nothing new.
    fresh = [attempt for attempt in attempts if attempt[1] != "dial backoff"] or attempts
    if not fresh:
        if any(sign in text for sign in _SLOW):
            return PeerTimeoutError(f"peer {peer_id} did not answer in time")
        return PeerUnreachableError(f"cannot reach peer {peer_id}: {_clean(text)}")
    maddr, reason = fresh[0]
    if match := _WRONG_ID.search(reason):
        return wrong_peer(maddr, match[1], peer_id)
    if "connection refused" in reason:
        return refused(maddr)
    if any(sign in reason for sign in _NOT_LIBP2P):
        return no_swarm_peer(maddr)
    if any(sign in reason for sign in _SLOW):
        return too_slow(maddr)
    return dial_failure(peer_id, maddr, reason)


def _clean(text: str) -> str:
    """A short part of a line: parts of the text come from the other side."""
    return one_line(text.removeprefix("failed to dial: "))[:200]
