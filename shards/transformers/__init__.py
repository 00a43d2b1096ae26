"""The transformers backend: blocks and clients of models that only transformers knows, by its own layers.
Fetches nothing, runs no code of a checkpoint. Importing any module in here imports torch and transformers.
"""
