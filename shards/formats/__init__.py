"""Bytes of model files, read within bounds: configurations, headers, tensors. Computes nothing."""
