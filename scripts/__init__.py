"""What developers run: entry points at the top, laboratories in ``lab``, finished studies in ``studies``.

The package that people install imports nothing of it.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
