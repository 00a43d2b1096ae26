"""``serve`` and ``bootstrap``: commands that run a node. Here nothing asks a swarm for text."""
