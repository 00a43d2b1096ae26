"""Multiaddresses in binary, as p2pd takes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

from hivemind.p2p import PeerID
from hivemind.utils.multiaddr import Multiaddr

from ...errors import UsageError

logger = logging.getLogger(__name__)

KEPT_TEXTS = 4096
"""The texts of this many addresses are remembered: those of the connected peers, with room to spare."""

_P2P_CODE = bytes.fromhex("a503")  # multicodec 421 as a varint


def encode_maddr(text: str) -> bytes:
    """A multiaddress in binary. Raises UsageError.

    hivemind's Multiaddr turns ids after /p2p/ into CIDs, which p2pd does not accept, so those are done here.
    """
    encoded = b""
    try:
        first, *rest = text.replace("/ipfs/", "/p2p/").split("/p2p/")
        if first:
            encoded += Multiaddr(first).to_bytes()
        for part in rest:
            peer_id, slash, following = part.partition("/")
            raw = PeerID.from_base58(peer_id).to_bytes()
            encoded += _P2P_CODE + bytes([len(raw)]) + raw
            if following:
                encoded += Multiaddr(slash + following).to_bytes()
    except ValueError as error:
        raise UsageError(
            f"{text[:200]!r} is not a multiaddress: {str(error)[:200]}",
            hint="An address looks like /ip4/203.0.113.5/tcp/31330, or /dns4/HOST/tcp/31330.",
        ) from None
    return encoded


@lru_cache(maxsize=KEPT_TEXTS)
def maddr_text(encoded: bytes) -> str:
    """A multiaddress as text; "" for bytes that are not a multiaddress."""
    try:
        return str(Multiaddr(encoded))
    except ValueError:
        return ""


def readable_maddrs(peer_id: str, maddrs: Sequence[str]) -> list[bytes]:
    """The addresses that can be encoded, without their final /p2p part, which p2pd wants apart."""
    encoded = []
    for maddr in maddrs:
        try:
            encoded.append(encode_maddr(maddr.removesuffix(f"/p2p/{peer_id}")))
        except UsageError as error:
            logger.debug("an address of peer %s is passed over: %s", peer_id, error.message)
    return encoded
