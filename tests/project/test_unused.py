"""What a module of the packages defines is used by another, by itself or by a script, not by tests alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import chain

from tests import ROOT

PACKAGES = ("swarm", "dht", "shards", "node", "client")
CALLED_BY_NAME = {"__all__", "__getattr__", "__dir__"}
"""Python itself looks for these."""


def defined(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def used(tree: ast.Module) -> Iterator[str]:
    """Names that are read or imported, and those in strings, as doors that load a name late have them."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
                yield name
            case ast.alias(name=name):
                yield name.split(".")[-1]
            case ast.Constant(value=str(name)) if name.isidentifier():
                yield name


def unused(modules: Mapping[str, ast.Module]) -> list[str]:
    """A logger is its module's own; what else a module defines may be used in any."""
    names = {file: set(used(tree)) | CALLED_BY_NAME for file, tree in modules.items()}
    anywhere = set(chain.from_iterable(names.values()))
    return [
        f"{file}: {name}"
        for file, tree in modules.items()
        for name in defined(tree)
        if name not in (names[file] if name == "logger" else anywhere)
    ]


def test_every_name_is_used() -> None:
    """Scripts are users as well, and are looked at themselves by nobody: they start functions by name."""
    files = [path for top in (*PACKAGES, "scripts") for path in sorted((ROOT / top).rglob("*.py"))]
    modules = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in files}
    assert [name for name in unused(modules) if not name.startswith("scripts/")] == []


def test_the_check_sees_what_nobody_uses() -> None:
    one = ast.parse("logger = 1\n_OLD: int = 1\nNEW = 2\nclass A: ...\ndef f(x: A): return NEW\n")
    other = ast.parse("from one import f\nlogger = 2\nlogger.info('_old')\n")
    assert unused({"one.py": one, "other.py": other}) == ["one.py: logger", "one.py: _OLD"]
