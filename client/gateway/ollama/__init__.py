"""Ollama's API: its bodies read into requests, answers written as its lines of JSON, and models listed as it
does. It runs no generation, and knows nothing of the other APIs."""
