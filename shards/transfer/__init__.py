"""Pieces fetched from peers and the hub, and served to others. The only room here with connections."""
