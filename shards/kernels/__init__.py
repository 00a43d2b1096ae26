"""Our C kernels for the CPU, compiled at the first start, and the table that says which one is fastest.
Knows no models.
"""
