"""The one way into a swarm: which directory, over which transport, through which peers. Opens no sessions."""
