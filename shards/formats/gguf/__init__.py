"""GGUF files: header, settings, tensors. Knows no other format."""
