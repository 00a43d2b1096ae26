"""Files that a person names: read within a bound, and without waiting for a writer that may never come.

Such a file may be a device without an end. It may be a named pipe without a writer: an ordinary ``open`` of
it waits for ever, and no signal ends the process.
"""

from __future__ import annotations

import errno
import os


def read_given(path: str | os.PathLike[str], most: int) -> bytes:
    """All of the file, of ``most`` bytes at most. A pipe without a writer is empty; one that a shell has made
    for ``<(command)`` is read to its end. Raises OSError."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(file.fileno(), True)
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
    return data
