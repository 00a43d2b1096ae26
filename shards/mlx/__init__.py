"""The MLX backend: a span's blocks on Apple Silicon's GPU, or on a CPU for tests. Fetches nothing.

Importing any module in here imports mlx: go through ``devices.require_mlx`` first.
"""
