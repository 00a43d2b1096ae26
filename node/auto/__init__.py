"""Which model and blocks a node takes if it is told none. Knows no command line."""
