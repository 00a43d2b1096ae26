"""What libp2p says on a connection, without I/O: multistream, Noise, yamux, identify. Knows no transport."""
