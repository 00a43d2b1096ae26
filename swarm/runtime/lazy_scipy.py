"""hivemind without scipy's optimizers, which it imports for its averaging and which nothing here uses.

They cost 0.4 s of a core and 39 MB in every process that joins a swarm.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

NAME = "scipy.optimize"
_lock = threading.Lock()


def make_lazy() -> None:
    """Before hivemind is imported: let ``scipy.optimize`` be imported when something of it is used.

    Nothing happens where it is imported already, or not installed.
    """
    with _lock:
        if NAME in sys.modules:
            return
        try:
            spec = importlib.util.find_spec(NAME)
        except ImportError:
            return
        if spec is None:
            return
        placeholder = ModuleType(NAME)
        placeholder.__spec__, placeholder.__file__, placeholder.__package__ = spec, spec.origin, NAME
        placeholder.__getattr__ = lambda name: _attribute(placeholder, name)  # type: ignore[method-assign]
        sys.modules[NAME] = placeholder
        sys.modules["scipy"].optimize = placeholder  # type: ignore[attr-defined]


def _attribute(placeholder: ModuleType, name: str) -> Any:
    """The attribute of the real module, which takes the placeholder's place. Code that looks through all
    modules (``inspect`` does) does not load the real one."""
    if name.startswith("__") and name not in ("__all__", "__path__"):
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
    with _lock:
        if sys.modules.get(NAME) is placeholder:
            del sys.modules[NAME]
    return getattr(importlib.import_module(NAME), name)
