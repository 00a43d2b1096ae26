"""Which session holds which memory of a node: pages of keys and values, states, names of both. Plain ints:
no tensor, no clock, no thread."""
