"""Hostile bytes for everything that reads what strangers send: targets, mutations, and processes that may
die of them. Entry point: ``scripts/fuzz``."""
