"""Completion scripts, read by the shells that they are for."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.settings.completion import script_for

pytestmark = pytest.mark.skipif(os.name == "nt", reason="its shells are others")

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p swarm-node | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function swarm-node "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("models/my-model.Q8_0.gguf", "hub/models--Owner--Name/x", "key.file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "SWARM_NODE_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "TERM": "dumb",
    }


def script(home: Path, shell: str) -> Path:
    path = home / f"script.{shell}"
    path.write_text(script_for(shell, build_parser()))
    return path


def bash(home: Path, line: str) -> list[str]:
    words = [*line.split(" ")]
    call = ["bash", "--norc", "-c", BASH, "bash", str(script(home, "bash")), *words]
    return _lines(call, home)


def fish(home: Path, line: str) -> list[str]:
    if shutil.which("fish") is None:
        pytest.skip("needs fish: apt-get install fish")
    call = ["fish", "--no-config", "-c", f'source "{script(home, "fish")}"; complete -C "{line}"']
    return [each.split("\t")[0] for each in _lines(call, home)]


def _lines(call: list[str], home: Path) -> list[str]:
    done = subprocess.run(
        call, capture_output=True, text=True, env=environment(home), cwd=home, timeout=60, check=True
    )
    assert not done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("complete", [bash, fish])
def test_commands_options_choices_files_and_models(
    complete: Callable[[Path, str], list[str]], home: Path
) -> None:
    assert {"serve", "gateway", "config"} <= set(complete(home, "swarm-node "))
    assert complete(home, "swarm-node boot") == ["bootstrap"]
    assert set(complete(home, "swarm-node serve --kv")) == {"--kv-cache-tokens", "--kv-dtype"}
    assert set(complete(home, "swarm-node serve --kv-dtype ")) >= {"auto", "int8"}
    assert set(complete(home, "swarm-node config gate")) == {"gateway"}
    assert "key.file" in complete(home, "swarm-node serve --identity key")
    models = complete(home, "swarm-node serve --model ")
    assert {"my-model.Q8_0", "Owner/Name", "qwen3-8b"} <= set(models)
    assert complete(home, "swarm-node serve --model my-m") == ["my-model.Q8_0"]


@pytest.mark.parametrize("complete", [bash, fish])
def test_what_stands_in_a_name_is_not_run(complete: Callable[[Path, str], list[str]], home: Path) -> None:
    (home / "models/$(touch hurt)`touch hurt`;touch hurt.gguf").touch()
    complete(home, "swarm-node serve --model ")
    assert not (home / "hurt").exists()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh: apt-get install zsh")
def test_zsh_completes(home: Path) -> None:
    """Zsh completes only at a terminal: the keys are typed into one."""
    script(home, "zsh").rename(home / "_swarm-node")
    setup = f"fpath=({home} $fpath); autoload -U compinit; compinit -u -D; PROMPT='ready> '\n"
    assert "swarm-node bootstrap" in typed(home, setup, "swarm-node boot\t")
    assert "--kv-dtype" in typed(home, setup, "swarm-node serve --kv-d\t")
    assert "my-model.Q8_0" in typed(home, setup, "swarm-node serve --model my-m\t")


def typed(home: Path, setup: str, keys: str) -> str:
    """What a zsh shows after these keys."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment(home))
    try:
        os.write(terminal, setup.encode())
        _read(terminal, until=r"ready> $")
        os.write(terminal, keys.encode())
        return _read(terminal, until=r"(bootstrap|kv-dtype|Q8_0) ?$")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def _read(terminal: int, until: str) -> str:
    said, end = "", time.monotonic() + 30
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            said += re.sub(
                r"\x1b\[[0-9;?]*[a-zA-Z]|\x07", "", os.read(terminal, 4096).decode(errors="replace")
            )
        if re.search(until, said):
            return said
    raise AssertionError(f"not seen in 30 s: {until} in {said!r}")
