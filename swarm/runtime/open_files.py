"""Descriptors: how many connections a process may hold, and what says that there is none left."""

from __future__ import annotations

import contextlib
import errno

RESERVED = 256
"""Descriptors that are kept for all else: peers that we dial, models, logs."""
LEAST = 16
"""So many connections are allowed even where there is hardly a descriptor."""


def allowed_connections(wished: int, share: float = 1.0) -> int:
    """``wished`` connections, or as many as ``share`` of the descriptors that this process may have beside
    the reserved ones. Their limit is raised as far as that takes, and is possible."""
    try:
        import resource
    except ImportError:  # Windows: descriptors have no such bound
        return wished
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = int(wished / share) + RESERVED
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wished
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(LEAST, min(wished, int((soft - min(RESERVED, soft // 2)) * share)))


def none_left(error: BaseException) -> bool:
    """Whether it says that this process, or the machine, has no descriptor left: of nobody else it says
    anything."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
