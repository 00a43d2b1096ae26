"""The conversation in a terminal. Knows no node."""
