"""Runs a study:  scripts/study NAME …  Without a name, or with ``--help``, it lists them."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from swarm_node.swarm.errors import SwarmError

HERE = Path(__file__).parent
FILES = {
    study.name: HERE / study.name / "main.py" if study.ispkg else HERE / f"{study.name}.py"
    for study in iter_modules([str(HERE)])
    if study.name != "__main__"
}
"""The file of each study that has its docstring and its function ``main``."""


def summary(name: str) -> str:
    """The first line of its docstring, read without importing it."""
    return (ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main_of(name: str) -> int:
    """Run it with the words of ``sys.argv``. Returns its exit code."""
    module = ".".join(FILES[name].relative_to(HERE).with_suffix("").parts)
    study = import_module(f"{__package__}.{module}")
    try:
        return int(study.main())
    except SwarmError as error:
        print("\n       ".join(filter(None, (f"error: {error.message}", error.hint))), file=sys.stderr)
        return error.exit_code


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in FILES:
        del sys.argv[1]
        return main_of(name)
    if name in ("-h", "--help"):
        print("usage: scripts/study NAME …    (scripts/study NAME --help says what it does)\n")
        print("\n".join(f"  {each:18} {summary(each)}" for each in FILES))
        return 0
    print(f"error: no study is called {name!r}\n       There are: {', '.join(FILES)}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
