"""The container's files against what they start: paths, commands, ports and times."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.service.definition import AFTER_DRAIN_S
from swarm_node.node.cli.settings.resolve import parse_words
from tests import ROOT

FOLDER = ROOT / "packaging/container"
CONTAINERFILE = (FOLDER / "Containerfile").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def arguments_of(service: dict[str, Any]) -> Any:
    """What the command sees, with each ${NAME:-default} at its default."""
    variables = {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in service["environment"].items()
    }
    assert all(isinstance(value, str) for value in service["environment"].values())
    settings = parse_words(build_parser(), service["command"], {"SWARM_NODE_CONFIG": os.devnull, **variables})
    assert len(settings.found) == len(variables), "a variable sets nothing"
    return settings.arguments


def test_the_image_is_made_as_a_checkout_is() -> None:
    assert re.search(r"^RUN .*scripts/setup$", CONTAINERFILE, re.MULTILINE)
    assert "pip install" not in CONTAINERFILE
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", ".models"} <= set(ignored)
    assert not {"scripts", "pyproject.toml", "README.md"} & set(ignored)


def test_the_context_and_the_file_of_the_image_are_there() -> None:
    build = SERVICES["node"]["build"]
    context = (FOLDER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    assert SERVICES["gateway"]["image"] == SERVICES["node"]["image"]


def test_one_node_and_one_gateway_of_one_model_listen_where_their_ports_are_open() -> None:
    node, gateway = arguments_of(SERVICES["node"]), arguments_of(SERVICES["gateway"])
    assert gateway.model == [node.model]
    assert SERVICES["node"]["ports"] == [f"{port}:{port}" for port in (node.port, node.direct_port)]
    assert SERVICES["gateway"]["ports"] == [f"127.0.0.1:{gateway.port}:{gateway.port}"]
    assert gateway.host == "0.0.0.0"


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_time_to_drain_and_keeps_what_it_must(name: str) -> None:
    service = SERVICES[name]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace >= arguments_of(service).drain_seconds + AFTER_DRAIN_S
    mounted = dict(volume.split(":") for volume in service["volumes"])
    assert mounted.keys() == COMPOSE["volumes"].keys()
    assert sorted(mounted.values()) == sorted(re.findall(r'"(/\w+)"', CONTAINERFILE.partition("VOLUME")[2]))


@pytest.mark.skipif(shutil.which("ruby") is None, reason="needs ruby")
def test_the_formula_is_ruby() -> None:
    formula: Path = ROOT / "packaging/homebrew/swarm-node.rb"
    done = subprocess.run(["ruby", "-c", str(formula)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "Syntax OK", done.stderr
