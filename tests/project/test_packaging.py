"""What pyproject.toml promises against what is on disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

from tests import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_listed() -> None:
    on_disk = {
        "swarm_node." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in ROOT.rglob("__init__.py")
        if path.relative_to(ROOT).parts[0] in {"swarm", "dht", "shards", "node", "client"}
    }
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == on_disk
    for package, folder in setuptools["package-dir"].items():  # and so the rooms in it
        assert package == f"swarm_node.{folder}"
        assert (ROOT / folder / "py.typed").is_file()


def test_every_dependency_is_bounded_and_pinned() -> None:
    pinned = {
        line.split("==")[0].replace("_", "-").lower()
        for line in (ROOT / "scripts/constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    for requirement in PYPROJECT["project"]["dependencies"]:
        name = re.split(r"[<>=\[ ]", requirement)[0].replace("_", "-").lower()
        assert name in pinned, f"{name} is not pinned in scripts/constraints.txt"
        assert re.search(r"[<>=]", requirement), f"{requirement} has no bound"


def _python(code: str) -> str:
    environment = dict(os.environ, PYTHONPATH="")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return done.stdout.strip()


def test_importing_the_client_stays_light() -> None:
    """Nothing of the network or of a backend is loaded before a swarm is dialled."""
    program = "import sys, swarm_node.client as c; c.SwarmModel; "
    loaded = _python(program + "print({'hivemind', 'torch'} & set(sys.modules))")
    assert loaded == "set()"


def test_pure_modules_load_neither_torch_nor_hivemind() -> None:
    protocol = ("messages", "wire", "hop_session")
    transport = (
        "interface",
        "memory",
        "protocols.yamux",
        "protocols.multistream",
        "direct.transport",
    )
    modules = (
        *("errors", "identity", "peer_health", "types", "links.message_stream", "routing.best_route"),
        *(f"protocol.{name}" for name in protocol),
        *(f"transport.{name}" for name in transport),
    )
    code = "import sys\n" + "\n".join(f"import swarm_node.swarm.{name}" for name in modules)
    assert (
        _python(code + "\nprint(sorted({'torch', 'hivemind', 'libp2p', 'trio'} & set(sys.modules)))") == "[]"
    )
