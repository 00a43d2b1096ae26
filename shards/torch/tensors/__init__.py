"""Rows, weights and a session's memory as tensors: devices, products, norms, rotations, pages and states. It
knows no block.
"""
