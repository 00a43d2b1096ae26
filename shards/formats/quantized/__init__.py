"""Matrices that quantizers of HuggingFace checkpoints have written as several tensors: which ones make one,
and how these make its numbers. Reads no file by itself; knows no family and nothing of kernels."""
