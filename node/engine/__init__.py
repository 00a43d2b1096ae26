"""Batches, KV pages and the prefix cache of one node's blocks. Knows no peers."""
