"""Compiling on the spot: built once, kept, rebuilt when damaged, and a clear reason when it cannot be."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_node.swarm.runtime import c_build
from swarm_node.swarm.runtime.c_build import NativeUnavailableError, is_built, load_library

try:
    c_build.compiler()
except NativeUnavailableError as error:
    pytestmark = pytest.mark.skip(reason=str(error))

Write = Callable[[str], list[Path]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SWARM_NODE_NATIVE", raising=False)
    monkeypatch.delenv("SWARM_NODE_CC", raising=False)
    monkeypatch.setattr(c_build, "_loaded", {})
    monkeypatch.setattr(c_build, "_failed", {})
    c_build.compiler.cache_clear()
    return tmp_path / "cache" / "swarm-node" / "native"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> list[Path]:
        source = tmp_path / "thing.c"
        source.write_text(text)
        return [source]

    return write


ANSWER = '#include "answer.h"\nint answer(void) { return ANSWER; }\n'


def test_a_library_is_built_once_and_found_again(home: Path, write: Write, tmp_path: Path) -> None:
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    sources = write(ANSWER)
    assert not is_built("thing", sources)
    assert load_library("thing", sources).answer() == 42
    assert is_built("thing", sources)
    (built,) = home.glob("*.so")
    before = built.stat().st_mtime_ns
    c_build._loaded.clear()
    assert load_library("thing", sources).answer() == 42
    assert built.stat().st_mtime_ns == before


def test_headers_and_flags_are_part_of_the_build(home: Path, write: Write, tmp_path: Path) -> None:
    (tmp_path / "answer.h").write_text("#ifndef ANSWER\n#define ANSWER 1\n#endif\n")
    sources = write(ANSWER)
    assert load_library("thing", sources).answer() == 1
    assert load_library("thing", sources, ["-DANSWER=2"]).answer() == 2
    (tmp_path / "answer.h").write_text("#define ANSWER 3\n")
    assert load_library("thing", sources).answer() == 3


def test_a_damaged_library_is_built_again(home: Path, write: Write) -> None:
    sources = write("int answer(void) { return 7; }\n")
    load_library("thing", sources)
    (built,) = home.glob("*.so")
    whole = built.stat().st_size
    built.unlink()  # the mapped file stays whole: only the name is new
    built.write_bytes(b"\x7fELF truncated")
    assert not is_built("other", sources)
    program = (
        "import sys; from pathlib import Path; from swarm_node.swarm.runtime.c_build import load_library;"
        "sys.exit(load_library('thing', [Path(sys.argv[1])]).answer())"
    )
    assert subprocess.run([sys.executable, "-c", program, str(sources[0])], timeout=120).returncode == 7
    assert built.stat().st_size == whole


@pytest.mark.slow
def test_old_builds_go(home: Path, write: Write) -> None:
    for number in range(c_build.KEPT_BUILDS + 3):
        load_library("thing", write(f"int answer(void) {{ return {number}; }}\n"))
    assert len(list(home.glob("*.so"))) == len(list(home.glob("*.sha256"))) == c_build.KEPT_BUILDS


def test_a_source_that_does_not_compile_says_why_and_is_not_tried_again(home: Path, write: Write) -> None:
    sources = write("int answer(void) { return nothing_of_that_name; }\n")
    with pytest.raises(NativeUnavailableError, match="nothing_of_that_name"):
        load_library("thing", sources)
    assert is_built("thing", sources)  # nothing left to try
    with pytest.raises(NativeUnavailableError, match="nothing_of_that_name"):
        load_library("thing", sources)
    assert not list(home.glob("*.so"))


def test_it_can_be_turned_off(home: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_NODE_NATIVE", "0")
    with pytest.raises(NativeUnavailableError, match="SWARM_NODE_NATIVE"):
        load_library("thing", write("int answer(void) { return 1; }\n"))


def test_no_compiler_is_a_clear_reason(home: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setattr(c_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NativeUnavailableError, match="no C compiler"):
        load_library("thing", write("int answer(void) { return 1; }\n"))


def test_a_compiler_that_does_not_run_is_passed_over(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = f'PATH={shlex.quote(os.environ["PATH"])} exec {shlex.join(c_build.compiler())} "$@"'
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, does in (("cc", "exit 1"), ("clang", real)):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    c_build.compiler.cache_clear()
    assert load_library("thing", write("int answer(void) { return 5; }\n")).answer() == 5
    assert c_build.compiler() == (str(programs / "clang"),)
    c_build.compiler.cache_clear()


def test_a_compiler_that_is_named_but_missing(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_CC", "no-such-compiler")
    with pytest.raises(NativeUnavailableError, match="no-such-compiler"):
        load_library("thing", write("int answer(void) { return 1; }\n"))


def test_a_compiler_that_fails_without_a_word(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_CC", "false")
    with pytest.raises(NativeUnavailableError, match="could not compile: it ended with status 1"):
        load_library("thing", write("int answer(void) { return 1; }\n"))


def test_a_cache_that_others_can_write_is_not_trusted(home: Path, write: Write) -> None:
    home.mkdir(parents=True)
    home.chmod(0o777)
    with pytest.raises(NativeUnavailableError, match="written by others"):
        load_library("thing", write("int answer(void) { return 1; }\n"))


def test_missing_sources_are_a_clear_reason(home: Path, tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match=r"gone\.c"):
        load_library("thing", [tmp_path / "gone.c"])
