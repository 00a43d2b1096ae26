"""Streams through go-libp2p's daemon, which this process starts and watches. Knows no ``direct``."""

from ...runtime.lazy_hivemind import make_lazy

make_lazy()
