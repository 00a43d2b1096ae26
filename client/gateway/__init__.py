"""An OpenAI-compatible HTTP gateway to a swarm: ``swarm-node gateway``, extra ``gateway``.

Importing this package costs nothing and needs no extra; ``server`` and ``app`` need Starlette and uvicorn.
"""

from __future__ import annotations

from importlib.util import find_spec

from ...swarm.errors import UsageError
from ...swarm.runtime.extras import install_extra

_NEEDED = ("starlette", "uvicorn", "httptools")


def require_extra() -> None:
    """Raises UsageError where the gateway's packages are not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the gateway needs {', '.join(missing)}", hint=f"In the checkout: {install_extra('gateway')}"
        )
