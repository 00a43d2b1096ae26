"""Streams between peers: the interface, addresses, dialling, and a network in memory. Knows no messages."""
