"""The torch backend: a span's blocks on CUDA, MPS, or a CPU where our kernels cannot run or do not pay.
Fetches nothing. Importing any module in here imports torch: only what was chosen does.
"""
