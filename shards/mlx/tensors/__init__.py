"""Rows, weights and a session's memory as arrays of MLX: the device, products, norms, rotations and pages. It
knows no block.
"""
