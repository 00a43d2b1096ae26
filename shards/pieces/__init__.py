"""A model's files as hashed pieces: manifest, store, cache, what is proven. Knows no network."""
