"""Where a node's weights come from, and to which peers it gives them. Knows no command line."""
