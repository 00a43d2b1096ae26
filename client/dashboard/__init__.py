"""A live picture of a swarm: what is shown, kept of the last hours, and sent. Knows no prompt or answer."""
