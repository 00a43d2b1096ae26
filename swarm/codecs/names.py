"""The names of the kinds of wire codecs, for who must not load what computes them."""

KINDS = ("none", "bf16", "fp16", "int8")
"""What this version speaks, as HELLO and announcements say it."""
