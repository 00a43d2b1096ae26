"""Which waiting steps a node computes together, and what they take. Plain ints and floats: no tensor, no
thread; times are passed in."""
