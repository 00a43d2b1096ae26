"""How fast weights travel between peers, and how many bytes leave the one that has them."""
