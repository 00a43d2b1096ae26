"""A model opened by path or name: which files, which tensors, which digest. Computes nothing."""
