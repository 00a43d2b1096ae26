"""Streams through go-libp2p's daemon, which this process starts and watches. Knows no ``direct``."""
