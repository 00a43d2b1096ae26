"""The direction of imports: swarm ← dht, shards ← client, node; heavy packages where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests import ROOT

PACKAGES = ("swarm", "dht", "shards", "client", "node")
MAY_IMPORT = {
    "swarm": {"swarm"},
    "dht": {"dht", "swarm"},
    "shards": {"shards", "swarm"},
    "client": {"client", "shards", "dht", "swarm"},
    "node": {"node", "shards", "dht", "swarm"},
}
COMPOSITION_ROOT = "node/cli/"  # the only room that may join client and node
HIVEMIND_FILES = ("dht/", "swarm/transport/p2pd/")
TORCH_FILES = ("shards/", "client/", "node/", "swarm/codecs/")
TORCH_FREE_NODE_FILES = (
    *("node/cli/", "node/limits/", "node/presence/", "node/sessions/", "node/weights/"),
    *("node/engine/page_allocator.py", "node/engine/page_tables.py", "node/engine/prefix_cache.py"),
    *("node/engine/prefill_pace.py", "node/engine/scheduler.py"),
)


def imports(source: str, file: str) -> Iterator[str]:
    """Absolute dotted names of all that ``file`` (as ``package/module.py``) imports, nested ones too."""
    package = ["swarm_node", *file.split("/")[:-1]]
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            module = ".".join([*base, *(statement.module or "").split(".")]).strip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in statement.names)


def violations(source: str, file: str) -> list[str]:
    found = []
    package = file.split("/")[0]
    for name in imports(source, file):
        top, *rest = name.split(".")
        if top in PACKAGES:
            found.append(f"{file} imports {name} by its bare name: use a relative import")
        if top == "swarm_node" and not file.startswith("tests") and rest and rest[0] in PACKAGES:
            allowed = set(PACKAGES) if file.startswith(COMPOSITION_ROOT) else MAY_IMPORT[package]
            if rest[0] not in allowed:
                found.append(f"{file} imports {name}: {package} may import {', '.join(sorted(allowed))}")
        if top == "hivemind" and not file.startswith(HIVEMIND_FILES):
            found.append(f"{file} imports hivemind: only dht/ and the p2pd transport may")
        if top in ("libp2p", "trio") and not file.startswith("swarm/transport/pure_python/"):
            found.append(f"{file} imports {name}: only swarm/transport/pure_python/ may")
        if top == "torch" and (not file.startswith(TORCH_FILES) or file.startswith(TORCH_FREE_NODE_FILES)):
            found.append(f"{file} imports torch: it belongs to the engine, shards, client and codecs")
        if top == "mlx" and not file.startswith(("shards/mlx/", "shards/models/devices.py")):
            found.append(f"{file} imports mlx: only shards/mlx/ may, and what asks whether it is there")
        if top == "transformers" and not file.startswith("client/hf/"):
            found.append(f"{file} imports transformers: only client/hf/ may")
    return found


FILES = sorted(
    path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_direction(file: str) -> None:
    assert violations((ROOT / file).read_text(), file) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("swarm/protocol/wire.py", "from ...dht import records"),
        ("swarm/routing/best_route.py", "import torch"),
        ("dht/delegated/directory.py", "from libp2p.peer.id import ID"),
        ("dht/records/bodies.py", "from ...shards.formats.config import ModelConfig"),
        ("client/hops/hop.py", "from ... import node"),
        ("client/hops/hop.py", "def f():\n    from ...node.server import Server"),
        ("node/sessions/server.py", "import swarm_node.client"),
        ("node/sessions/server.py", "import hivemind"),
        ("node/engine/scheduler.py", "import torch"),
        ("shards/models/llama.py", "from transformers import AutoModel"),
        ("shards/models/llama.py", "import mlx.core as mx"),
        ("client/generation.py", "def f():\n    from transformers import Cache"),
        ("shards/models/llama.py", "from swarm.types import Span"),
    ],
)
def test_the_check_sees_a_wrong_import(file: str, line: str) -> None:
    assert len(violations(line, file)) >= 1


def test_the_composition_root_may_join_both() -> None:
    assert violations("from ..client import SwarmModel\nfrom .serve import Node", COMPOSITION_ROOT) == []
