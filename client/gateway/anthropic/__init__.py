"""Anthropic's messages API: its bodies read into requests, and answers written as its content blocks and
events. It runs no generation, and knows nothing of the other APIs."""
