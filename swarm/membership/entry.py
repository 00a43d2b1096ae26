"""Into which swarm a process goes, and how: what ``--initial-peers``, ``--swarm`` and ``--join`` say."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from ..errors import UsageError
from ..identity import Identity
from ..runtime.given_files import read_given
from ..transport.addresses import PeerAddress
from .invite import MAX_INVITE_CHARS, PREFIX, Invite
from .membership import KeyedSwarm, Membership, NamedSwarm, swarm_name


@dataclass(frozen=True, slots=True)
class SwarmEntry:
    """``initial_peers``: addresses, one of which must answer. ``may_meet``: addresses that need not.

    ``membership`` None: the unnamed swarm. ``mdns``: look for peers on this LAN. ``pure_python``: never
    start p2pd; nodes that run it are asked for the directory.
    """

    initial_peers: tuple[str, ...] = ()
    may_meet: tuple[str, ...] = ()
    membership: Membership | None = None
    mdns: bool = True
    pure_python: bool = False

    @property
    def tag(self) -> str:
        """The swarm's tag; "" is the unnamed one."""
        return "" if self.membership is None else self.membership.tag

    @property
    def name(self) -> str:
        """The swarm's name, as people chose it; "" for none."""
        return "" if self.membership is None else self.membership.name

    @property
    def is_keyed(self) -> bool:
        """Only whom the holder of a key lets in is in the swarm."""
        return isinstance(self.membership, KeyedSwarm)

    @property
    def is_alone(self) -> bool:
        """True if no address of another peer is given and the LAN is not searched."""
        return not (self.initial_peers or self.may_meet or self.mdns)


def swarm_entry(
    initial_peers: Sequence[str] = (),
    *,
    swarm: str = "",
    swarm_key: str | os.PathLike[str] | None = None,
    join: str = "",
    mdns: bool = True,
    pure_python: bool = False,
    now: float | None = None,
) -> SwarmEntry:
    """``swarm``: its name. ``swarm_key``: the file of its key. ``join``: an invite, or a file that holds one.

    ``now``: Unix time. Raises UsageError: not a peer's address, an invite that is damaged or over, another
    swarm's, no key file.
    """
    if isinstance(initial_peers, str):
        initial_peers = [initial_peers]
    for text in initial_peers:
        PeerAddress.parse(text)
    name = swarm_name(swarm)
    if join:
        if swarm_key is not None:
            raise UsageError(
                "--join and --swarm-key are two ways into a swarm",
                hint="Give one of them: the key, if you have it.",
            )
        invite = Invite.parse(read_invite(join))
        if name and name != invite.name:
            raise UsageError(
                f"the invite is for swarm {invite.name!r}, not {name!r}",
                hint="Leave --swarm out: an invite says which swarm it is for.",
            )
        membership = invite.membership(time.time() if now is None else now)
        return SwarmEntry(tuple(initial_peers), tuple(map(str, invite.peers)), membership, mdns, pure_python)
    if swarm_key is not None:
        key = load_swarm_key(swarm_key)
        keyed = KeyedSwarm(name, key.public_bytes, holder=key)
        return SwarmEntry(tuple(initial_peers), (), keyed, mdns, pure_python)
    return SwarmEntry(tuple(initial_peers), (), NamedSwarm(name) if name else None, mdns, pure_python)


def load_swarm_key(path: str | os.PathLike[str]) -> Identity:
    """The key in a file. Raises UsageError."""
    try:
        return Identity.load(path)
    except FileNotFoundError:
        raise UsageError(
            f"there is no swarm key at {os.fspath(path)}",
            hint="Machines of one swarm need the same key file: check the name, or copy it. "
            f"A swarm of your own begins with: `swarm-node invite --swarm-key {quote(os.fspath(path))}`",
        ) from None


def read_invite(text: str) -> str:
    """The invite that ``text`` is, or that the file of this name holds. Raises UsageError."""
    if text.lstrip().startswith(PREFIX) or len(text) > 1024:
        return text
    path = Path(text).expanduser()
    if not path.exists() or path.is_dir():
        return text
    try:
        return read_given(path, 2 * MAX_INVITE_CHARS).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read an invite from {text[:200]}: {reason}") from None
