"""What a node has done since it started, in plain numbers. Knows no engine, and nothing of texts."""
