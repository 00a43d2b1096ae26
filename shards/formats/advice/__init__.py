"""What a model's makers say of its use: how to sample, what to pool. Reads no files."""
