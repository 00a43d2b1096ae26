"""Blocks by our C kernels, on the CPU: the structs that they read, and the span that calls them. It computes
nothing in Python, and knows no other backend.
"""
