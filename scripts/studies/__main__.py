"""Runs a study:  scripts/study NAME …  Without a name, or with ``--help``, it lists them."""

from __future__ import annotations

import ast
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

NAMES = [module.name for module in iter_modules([str(Path(__file__).parent)]) if module.name != "__main__"]


def summary(name: str) -> str:
    """The first line of its docstring, read without importing it."""
    spec = find_spec(f"scripts.studies.{name}")
    assert spec is not None
    assert spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").partition("\n")[0]


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in NAMES:
        del sys.argv[1]
        runpy.run_module(f"scripts.studies.{name}", run_name="__main__", alter_sys=True)
        return 0
    if name in ("-h", "--help"):
        print("usage: scripts/study NAME …    (scripts/study NAME --help says what it does)\n")
        print("\n".join(f"  {each:18} {summary(each)}" for each in NAMES))
        return 0
    print(f"error: no study is called {name!r}\n       There are: {', '.join(NAMES)}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
