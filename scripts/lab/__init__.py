"""Laboratories, each in a folder of its own, and what they share: processes, swarms, models, reports."""
