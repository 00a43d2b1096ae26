"""Sessions of many hops over one stream to a peer, and the pool of such links. Knows no routes."""
