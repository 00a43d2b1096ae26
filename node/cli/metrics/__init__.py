"""The figures and the health of a node over HTTP. Knows only what a node tells of itself."""
