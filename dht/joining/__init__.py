"""The one way into a swarm: which directory, over which transport, through whom. Opens no sessions."""
