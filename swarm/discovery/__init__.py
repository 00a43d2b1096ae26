"""Peers on the local network, found by multicast DNS. Knows no DHT."""
