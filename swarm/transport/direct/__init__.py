"""libp2p over TCP, Noise and yamux in this process: streams go straight to the peer. Knows no ``p2pd``."""
