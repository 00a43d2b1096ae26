"""A route in use: hops, the segments they form, and how long each step takes. Chooses no peers."""
