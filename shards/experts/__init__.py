"""Experts that stay in the file: settings, files and errors of the C store, which keeps the hottest in memory
and reads the others (``kernels/csrc/expert_store.c``). Knows no checkpoint and no network."""
