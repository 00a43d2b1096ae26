"""A log file that is begun anew when it is large."""

from __future__ import annotations

import errno
import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from .output import console, shown


class LogFile(RotatingFileHandler):
    """It tells whom this machine talks to, so only its user may read it. Records that the disk does not take
    are dropped, and the first of them is told on standard error."""

    def __init__(self, path: str, size: int, kept: int) -> None:
        """``size``: in bytes; ``kept``: how many old files. Raises OSError."""
        self._failed = False
        file = Path(path).expanduser()
        if file.is_fifo():  # who opens it waits for its reader, and nothing ends that
            raise OSError(errno.EINVAL, "it is a pipe", path)
        super().__init__(file, maxBytes=size, backupCount=kept, encoding="utf-8", errors="replace")

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not self._failed:
            self._failed = True
            console.print(f"[yellow]The log file cannot be written[/]: {shown(str(error))}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
