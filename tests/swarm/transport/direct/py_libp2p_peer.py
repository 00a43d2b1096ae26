"""py-libp2p's own host, a peer that is not ours. In a process of its own: it runs on trio, and it cannot be
imported beside hivemind."""

from __future__ import annotations

import secrets
import sys
from typing import Any

from scripts.lab.processes.parent import tell

ECHO = "/echo/1"


def take_part(*, target: str) -> str:
    """Echo what comes until the input ends or, with ``target``, say something there; what came back."""
    import trio

    return trio.run(_take_part, target)


async def _take_part(target: str) -> str:
    import trio
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
    from libp2p.custom_types import TProtocol
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport
    from multiaddr import Multiaddr

    keys = create_new_key_pair(secrets.token_bytes(32))
    noise = Transport(keys, create_noise_key().private_key)
    host = new_host(key_pair=keys, sec_opt={PROTOCOL_ID: noise}, muxer_preference="YAMUX")

    async def echo(stream: Any) -> None:
        await stream.write(await stream.read(5))
        await stream.close()

    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        if not target:
            host.set_stream_handler(TProtocol(ECHO), echo)
            tell("listening", maddr=str(host.get_addrs()[0]))
            await trio.to_thread.run_sync(sys.stdin.read)
            return ""
        info = info_from_p2p_addr(Multiaddr(target))
        await host.connect(info)
        stream = await host.new_stream(info.peer_id, [TProtocol(ECHO)])
        await stream.write(b"hello")
        return f"{host.get_id()} {(await stream.read(5)).decode()}"
