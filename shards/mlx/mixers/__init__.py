"""The parts of a block in which a token's result depends on tokens before it, on MLX. They know no span and
no file.
"""
