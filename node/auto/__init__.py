"""Which model and blocks a node takes when nobody says. Knows no command line."""
