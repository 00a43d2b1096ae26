"""``run``: a chat with a model, whose missing blocks a node of our own serves meanwhile. The node is another
process: nothing is computed here.
"""
