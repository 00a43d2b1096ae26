"""The entry of ``swarm-node``. Until the command line is imported, Ctrl-C ends the process without output.

Python's search for garbage rests until a command has imported its modules: none of what they make is any.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    gc.disable()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .main import main as run  # here: its imports take a moment

    signal.signal(signal.SIGINT, before)
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
