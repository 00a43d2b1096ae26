"""Drives a look-up: asks the peers that it names, as many at once as it may, and does not wait for slow
ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ...swarm.faults import Faults
from ...swarm.runtime.tasks import cancel_all
from .contacts import Contact
from .paths import Paths
from .peer_notes import DEAD_NAMES_S, PeerNotes


@dataclass(frozen=True, slots=True)
class Told:
    """One peer's answer: the peers that it names, and the address group that it answers from."""

    names: Sequence[Contact]
    group: str = ""


_faults = Faults("DHT look-up")

Ask = Callable[[Contact], Awaitable[Told | None]]
"""Asks one peer, within a time limit of its own; None if it gives no answer."""


async def look_up(paths: Paths, ask: Ask, notes: PeerNotes) -> None:
    """Ask along ``paths`` until there is no peer left to ask or to wait for; questions that are late then are
    dropped. If it is cancelled, ``paths`` has what was found."""
    now = asyncio.get_running_loop().time
    asking: dict[asyncio.Task[Told | None], Contact] = {}
    try:
        while True:
            for contact in paths.ready(now()):
                asking[asyncio.create_task(_ask(ask, contact))] = contact
            if not asking or paths.is_over(now()):
                return
            done, _ = await asyncio.wait(
                asking, timeout=max(0.001, paths.next_look(now())), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                contact, told = asking.pop(task), task.result()
                if told is None:
                    paths.failed(contact)
                else:
                    trusted = not notes.is_distrusted(contact.peer_id)
                    names = [name for name in told.names if trusted and not notes.is_silent(name.peer_id)]
                    paths.answered(contact, names, told.group)
    finally:
        await cancel_all(asking)
        for peer_id in paths.liars():
            notes.lied(peer_id, DEAD_NAMES_S)


async def _ask(ask: Ask, contact: Contact) -> Told | None:
    """An error over one peer's answer costs only that answer."""
    with _faults.survived():
        return await ask(contact)
    return None
