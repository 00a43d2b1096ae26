"""The wheel: built without a network, with all that packages read, and answering from its own environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from scripts.lab.tiny_model import write_tiny_model
from tests import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("swarm", "dht", "shards", "node", "client")
MADE = shutil.ignore_patterns("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend that pyproject.toml names, from a copy: it leaves its work beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=MADE)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["build-backend"]
    program = f"import {backend} as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    built = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-c", program, str(built)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(built.glob("*.whl"))


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    """But for notes to who changes them."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("swarm_node/")}
    here = {
        f"swarm_node/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert packed == here
    assert any(name.endswith(".c") for name in packed)
    assert any(name.endswith(".html") for name in packed)


def test_it_answers_from_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are those of this environment, which is not asked for the package itself."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    zipfile.ZipFile(wheel).extractall(packages)
    # After the wheel's own folder; a .pth file in the other one, such as that of the checkout, is not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "tiny").mkdir()
    model = write_tiny_model(tmp_path / "tiny")

    def said(*words: str) -> str:
        done = subprocess.run(
            [python, "-P", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=150,
            env={**os.environ, "SWARM_NODE_HOME": str(tmp_path / "home"), "PYTHONPATH": ""},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("-c", "import swarm_node.node as it; print(it.__file__)").startswith(str(packages))
    run = ("-m", "swarm_node.node.cli")
    assert said(*run, "--version").startswith("swarm-node ")
    plan = json.loads(said(*run, "plan", "--model", str(model), "--no-mdns", "--json"))
    assert plan["verdict"] == "serve"
