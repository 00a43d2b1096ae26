"""What a model of experts costs a node that has memory for a quarter of it."""
