"""hivemind's p2pd client and messages, without the rest of it.

``import hivemind.p2p`` first runs ``hivemind/__init__.py``, which imports all that trains models: torch,
scipy, a second of a core and 240 MB. What we use of hivemind (``p2p``, ``proto``, ``utils.multiaddr``) needs
none of that. So its two packages that import everything are entered into ``sys.modules`` as they are before
their code has run. Their submodules can be imported from then on, and their code runs when somebody asks for
a name of theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType
from typing import Any

PACKAGES = ("hivemind", "hivemind.utils")
"""The packages with submodules of use and an ``__init__.py`` of none, the outer one first."""


def make_lazy() -> None:
    """Call it before anything of hivemind is imported. Idempotent; does nothing where hivemind is imported
    already, or not installed."""
    for name in PACKAGES:
        if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
            return
        package = importlib.util.module_from_spec(spec)
        package.__getattr__ = partial(_attribute, package)  # type: ignore[method-assign]
        sys.modules[name] = package
        outer, _, own_name = name.rpartition(".")
        if outer:
            setattr(sys.modules[outer], own_name, package)


def _attribute(package: ModuleType, name: str) -> Any:
    """A name that the package does not have yet: a submodule that is just being imported, or the reason to
    run the package's code, in the same module object. Who looks through all modules, as ``inspect`` and
    ``warnings`` do, asks for names that no package defines."""
    if (part := sys.modules.get(f"{package.__name__}.{name}")) is not None:
        return part
    if name.startswith("__") and name not in ("__all__", "__version__"):
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
    ask_again = vars(package).pop("__getattr__")
    try:
        importlib.reload(package)
    except BaseException:
        package.__getattr__ = ask_again  # type: ignore[method-assign]
        raise
    return getattr(package, name)
