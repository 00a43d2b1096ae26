"""Answers that stream while nodes are killed, frozen, cut off and replaced by hostile ones."""
