"""Answers held to a schema, an expression or a grammar. Knows no transport."""
