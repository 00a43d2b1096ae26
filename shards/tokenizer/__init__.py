"""Texts to token ids and back, from GGUF or HuggingFace files. Knows no weights."""
