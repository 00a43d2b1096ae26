"""What a family of models has of its own, as a table row: how to write one stands in ``family.py``.
Opens no file, and computes nothing: rooms above read a file's configuration and tensors with it."""
