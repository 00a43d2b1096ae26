"""The parts of a block in which a token's result depends on tokens before it: attention, and recurrences.
They know no span and no file.
"""
