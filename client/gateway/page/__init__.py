"""The chat page, as a browser gets it. Knows no models."""
