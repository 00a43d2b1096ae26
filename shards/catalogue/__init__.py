"""Models that people want, as data: names, licences, where they are, and the figures of their shape. Reads no
file of a model and asks nobody: what a model would take is known before a byte of it is fetched.
"""
