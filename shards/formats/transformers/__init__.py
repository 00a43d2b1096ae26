"""HuggingFace models of families that have no row: what transformers' own classes say of them. Runs no code
of a checkpoint, and only where transformers and torch are installed.
"""
