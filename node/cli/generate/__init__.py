"""``generate``: one answer, and what it cost. Knows no node."""
