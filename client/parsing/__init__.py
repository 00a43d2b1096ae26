"""What a model writes, read while it writes it: thoughts and tool calls apart from text, in the form that the
model has for them. It knows nothing of tokens' making, of transports, or of HTTP."""
