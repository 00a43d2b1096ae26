"""Streams through py-libp2p, in this process. The only room that imports libp2p. Knows no ``p2pd``."""
