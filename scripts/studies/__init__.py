"""Finished studies of one question each, for a decision or a page of docs; ``scripts/study`` runs them."""
