"""Which blocks a node should serve, as pure functions of a snapshot. No sockets, no asyncio."""
