"""Commands of the command line in processes of their own that need not import all of it anew."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAM = """
import importlib, json, os, sys
from swarm_node.node.cli.main import main

imported, refused = json.loads(sys.argv[1])
for name in imported:
    importlib.import_module(name)
for line in sys.stdin.buffer:
    words, environment, files = json.loads(line)
    if not (child := os.fork()):
        os.environ.update(environment)
        for number, file in enumerate(files):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        try:
            code = main(words)
            if heavy := [name for name in refused if name in sys.modules]:
                print("imported", *heavy, file=sys.stderr)
                code = 1
        except SystemExit as error:
            code = error.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs each command that it is asked for in a fork of itself, which has what the command line imports, and
nothing that another command imported."""
TIMEOUT_S = 120.0

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@contextmanager
def forked_commands(*, imported: Sequence[str] = (), refused: Sequence[str] = ()) -> Iterator[Run]:
    """A function that runs a command of these words, with ``environment`` beside our own.

    ``imported``: modules that are there already when a command begins. ``refused``: such that no command may
    import; one that does ends with code 1.
    """
    numbers = itertools.count()

    def run(*words: str, environment: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
        assert runner.stdin is not None
        assert runner.stdout is not None
        files = [Path(folder, str(next(numbers))) for _ in range(3)]
        asked = [words, dict(environment), [str(file) for file in files]]
        runner.stdin.write(json.dumps(asked).encode() + b"\n")
        assert select.select([runner.stdout], [], [], TIMEOUT_S)[0], words
        code = int(runner.stdout.readline())
        return subprocess.CompletedProcess(words, code, files[1].read_text(), files[2].read_text())

    program = [sys.executable, "-c", PROGRAM, json.dumps([imported, refused])]
    with tempfile.TemporaryDirectory() as folder:
        runner = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            yield run
        finally:
            runner.kill()
            runner.communicate()
