"""OpenAI's responses API: its items read into requests, answers written as items and events, and responses
kept for a while to be gone on with. It runs no generation."""
