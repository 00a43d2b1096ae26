"""The listener that a peer has beside its daemon's, for those that dial the process itself."""

from __future__ import annotations

from collections.abc import Iterable

from ...swarm.errors import ListenError
from ...swarm.identity import Identity
from ...swarm.transport.addresses import listen_maddrs, listenable
from ...swarm.transport.dial_guard import Reach, reach_of, socket_of
from ...swarm.transport.direct.transport import DirectTransport
from ...swarm.transport.direct_maddrs import PORT_ABOVE, DirectOptions, mark_direct

_ORDER = (Reach.PUBLIC, Reach.PRIVATE, Reach.CARRIER, Reach.LINK, Reach.OTHER)


async def open_direct(
    identity: Identity, options: DirectOptions, *, listen_at: tuple[str, int] | None
) -> DirectTransport:
    """A transport from process to process. ``listen_at``: host and port of the daemon beside it; None: it
    only dials. Raises ListenError and UsageError."""
    if listen_at is None:
        return await DirectTransport.create(identity, client_mode=True, apart=True)
    host, port = listen_at
    wanted = options.port
    if wanted is None:
        wanted = port + PORT_ABOVE if port and port + PORT_ABOVE <= 65535 else 0
    try:
        where = listenable(listen_maddrs(host, wanted))
    except ListenError as error:
        if options.port is not None:
            raise
        if options.announce:  # which leads to this port, as far as we know
            raise ListenError(
                f"the direct listener has no place, and --announce-direct says where it is: {error.message}",
                hint="Choose its port with --direct-port, and give --announce-direct the address that leads "
                "there.",
            ) from error
        where = listenable(listen_maddrs(host, 0))
    return await DirectTransport.create(
        identity, host_maddrs=where, announce_maddrs=options.announce, apart=True
    )


def direct_maddrs(maddrs: Iterable[str]) -> tuple[str, ...]:
    """A listener's addresses as others are told: marked, those first that most peers can dial. Those of this
    machine alone only if there are no others."""
    reached = [(reach_of(at.host), maddr) for maddr in maddrs if (at := socket_of(maddr)) is not None]
    named = [maddr for maddr in maddrs if socket_of(maddr) is None]
    elsewhere = [(reach, maddr) for reach, maddr in reached if reach is not Reach.LOOPBACK]
    if elsewhere or named:
        reached = sorted(elsewhere, key=lambda each: _ORDER.index(each[0]))
    return tuple(mark_direct(maddr) for maddr in (*named, *(maddr for _, maddr in reached)))
