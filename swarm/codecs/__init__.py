"""Activations as bytes: quantized, packed, measured. Rows are numpy arrays of float32, and nothing else."""
