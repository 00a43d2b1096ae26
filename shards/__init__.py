"""A model on disk and in memory: read, fetched, computed. Knows no sessions and no routes."""
