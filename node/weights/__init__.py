"""Where a node's weights come from and whom it gives them to. Knows no command line."""
