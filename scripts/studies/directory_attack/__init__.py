"""Reads of the directory while many of its DHT nodes are hostile."""
