"""``gateway``: the HTTP server as a command. Knows no node."""
