"""The packages that serving HTTP needs, which are not everybody's."""

from __future__ import annotations

from importlib.util import find_spec

from ...swarm.errors import UsageError
from ...swarm.runtime.extras import install_extra

NEEDED = ("starlette", "uvicorn", "httptools", "prometheus_client")


def require_http(what: str) -> None:
    """``what`` is the one that serves, for people. Raises UsageError where a package is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"{what} needs {', '.join(missing)}", hint=f"In the checkout: {install_extra('gateway')}"
        )
