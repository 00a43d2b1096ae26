"""Tests mirror the rooms: ``tests/<package>/<room>/test_<module>.py``; whole swarms in ``tests/swarms``."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
