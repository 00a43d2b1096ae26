"""What a model writes, while it writes it: tool calls apart from text. It knows nothing of tokens' making, of
transports, or of HTTP."""
