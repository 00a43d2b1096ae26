"""The cheapest route through announced nodes, as pure functions of a snapshot. No sockets, no asyncio."""
