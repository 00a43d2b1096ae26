"""How often batching and repairs change a greedy answer."""
