"""Attention, linear layers, norms and rotary positions on torch, and the memory of keys and values.
Knows no model families.
"""
