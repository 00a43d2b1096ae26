"""Tokens guessed ahead, to be verified by the swarm in one pass. Opens no sessions."""
