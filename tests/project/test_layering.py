"""The house: which room may import which, what only some rooms may import, and how large a room may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import PurePosixPath

import pytest

from tests import ROOT

PACKAGES = {
    "swarm": ("swarm",),
    "dht": ("dht", "swarm"),
    "shards": ("shards", "swarm"),
    "client": ("client", "shards", "dht", "swarm"),
    "node": ("node", "shards", "dht", "swarm"),
}
"""A package, and which packages it may import."""

COMPOSITION_ROOT = "node/cli"
"""The room, with those in it, that may import the client, too."""

FLOORS = {
    "swarm": (
        ("swarm/runtime",),
        ("swarm",),
        ("swarm/confined", "swarm/protocol", "swarm/codecs", "swarm/routing"),
        ("swarm/fairness", "swarm/placement"),
        ("swarm/fidelity",),
        ("swarm/transport",),
        ("swarm/transport/protocols",),
        (
            *("swarm/transport/p2pd", "swarm/transport/direct", "swarm/transport/paths"),
            *("swarm/links", "swarm/discovery"),
        ),
        ("swarm/membership",),
        ("swarm/naming",),
    ),
    "dht": (("dht",), ("dht/records",), ("dht/kademlia", "dht/delegated"), ("dht/joining",)),
    "shards": (
        ("shards/formats/advice", "shards/formats/values"),
        ("shards/formats/blocks",),
        ("shards/formats",),
        ("shards/formats/files",),
        ("shards/formats/quantized",),
        ("shards/families",),
        ("shards/families/rows",),
        ("shards/formats/gguf", "shards/formats/hf"),
        ("shards/formats/transformers",),
        ("shards/catalogue", "shards/chat", "shards/layers", "shards/pieces"),
        ("shards/tokenizer", "shards/kernels"),
        ("shards/checkpoint", "shards/experts"),
        ("shards/models", "shards/transfer", "shards/certificates"),
        ("shards/native", "shards/mlx/tensors", "shards/torch/tensors"),
        ("shards/mlx/mixers", "shards/torch/mixers"),
        ("shards/mlx", "shards/torch"),
        ("shards/transformers",),
        ("shards",),
    ),
    "client": (
        ("client/decoding", "client/routing", "client/parsing"),
        ("client/guided", "client/hops"),
        ("client/session",),
        ("client/drafting",),
        ("client",),
        ("client/http", "client/hf"),
        ("client/gateway/requests", "client/pages", "client/metrics"),
        ("client/gateway/answers",),
        ("client/gateway/openai", "client/gateway/anthropic", "client/gateway/ollama"),
        ("client/gateway/openai/responses",),
        ("client/dashboard",),
        ("client/gateway",),
    ),
    "node": (
        ("node/figures", "node/engine/batching", "node/engine/memory"),
        ("node/engine", "node/limits", "node/presence", "node/volunteering"),
        ("node/sessions",),
        ("node",),
        ("node/auto", "node/weights", "node/doctor"),
        ("node/cli/shared",),
        ("node/cli/dashboard", "node/cli/metrics"),
        ("node/cli/chat", "node/cli/network", "node/cli/generate", "node/cli/gateway", "node/cli/serving"),
        ("node/cli/models", "node/cli/run", "node/cli/settings"),
        ("node/cli/service",),
        ("node/cli/doctor",),
        ("node/cli",),
    ),
}
"""From the ground up. A room may import the floors below its own; the rooms of one floor are apart."""

APART = {"client/guided": "client/routing", "client/gateway": "client/hf", "node/sessions": "node/presence"}
"""A room, and one on a floor below that neither it nor the rooms in it import."""

ONLY_IN = {
    "hivemind": ("swarm/transport/p2pd", "dht/kademlia"),
    "libp2p": (),  # a peer of tests
    "trio": (),
    "torch": (
        "node/doctor/computing.py",
        *("shards/torch", "shards/transformers", "shards/formats/transformers", "shards/models/devices.py"),
        *("shards/checkpoint/checkpoint.py", "client/hf"),
    ),
    "mlx": ("shards/mlx", "shards/models/devices.py"),  # which asks what there is
    "transformers": (
        *("shards/transformers", "shards/formats/transformers", "shards/checkpoint/checkpoint.py"),
        "client/hf",
    ),
    "huggingface_hub": ("shards/checkpoint", "shards/transfer"),
    "llguidance": ("client/guided",),
    "socket": ("swarm/transport", "swarm/discovery", "client/http"),
    "starlette": ("client/http", "client/gateway", "client/dashboard", "node/cli/metrics"),
    "uvicorn": ("client/http",),
    "prometheus_client": ("client/metrics",),
    "zeroconf": ("swarm/discovery",),
    "rich": ("node/cli",),
    "prompt_toolkit": ("node/cli/chat",),
}
"""What is imported in these rooms and the rooms in them alone."""

CALLS = ("import_module", "__import__")

COMPUTED = "a computed name"
"""What is imported where the name is not in the source."""

COMPUTED_IN = ("client/__init__.py", "client/hf/__init__.py")
"""Doors that import what is in their room once it is used."""

_NO_IO = ("asyncio", "concurrent", "multiprocessing", "selectors", "ssl", "subprocess", "threading")
_PEERS = ("swarm_node.swarm.links", "swarm_node.swarm.transport")
_STREAMS = (  # without the arithmetic of addresses, by which copies of a model are weighed
    *("swarm_node.swarm.links", "swarm_node.swarm.transport.interface"),
    *("swarm_node.swarm.transport.p2pd", "swarm_node.swarm.transport.direct"),
)

NEVER_IN = {
    "swarm/protocol": _NO_IO,
    "swarm/routing": _NO_IO,
    "swarm/placement": _NO_IO,
    "shards/formats": (*_PEERS, "asyncio"),
    "shards/chat": (*_PEERS, "torch"),
    "shards/tokenizer": (*_PEERS, "torch"),
    "shards/pieces": _PEERS,
    "shards/checkpoint": _STREAMS,
    "shards/layers": _PEERS,
    "shards/kernels": _PEERS,
    "shards/experts": _PEERS,
    "shards/models": _PEERS,
    "shards/native": _PEERS,
    "shards/mlx": _PEERS,
    "shards/transformers": _PEERS,
    "shards/loading.py": _PEERS,
    "client/decoding": _PEERS,
    "client/guided": _PEERS,
    "client/parsing": (*_PEERS, "asyncio"),
}
"""What is not imported in these rooms (and those in them) or files."""

MOST_MODULES = 15
"""In one folder: more is a corridor."""

MOST_LINES_AT_THE_DOOR = 4
"""Lines of a room's docstring: what it holds, and what it must not touch."""

FILES = sorted(
    path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)
ROOMS = sorted({str(PurePosixPath(file).parent) for file in FILES})


def imports(source: str, file: str) -> Iterator[str]:
    """Absolute dotted names of all that ``file`` (as ``package/room/module.py``) imports, also for types only
    and by calls; COMPUTED where a call's name is not in the source."""
    package = ["swarm_node", *file.split("/")[:-1]]
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            module = ".".join([*base, *(statement.module or "").split(".")]).strip(".")
            yield from (f"{module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.Call) and ast.unparse(statement.func).split(".")[-1] in CALLS:
            match statement.args:
                case [ast.Constant(value=str(name)), *_]:
                    module = name.lstrip(".")
                    above = package[: len(package) - (len(name) - len(module)) + 1]
                    yield module if module == name else ".".join([*above, module])
                case _:
                    yield COMPUTED


def module_of(name: str) -> str | None:
    """The file that an imported name is in, or is: None where it is none of ours."""
    parts = name.split(".")
    if parts[0] != "swarm_node":
        return None
    for end in range(len(parts), 1, -1):
        path = "/".join(parts[1:end])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if (ROOT / file).is_file():
                return file
    return None


def floor_of(room: str) -> int:
    floors = FLOORS[room.split("/")[0]]
    return next(number for number, rooms in enumerate(floors) if room in rooms)


def is_in(file: str, place: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def violations(source: str, file: str) -> list[str]:
    found = []
    room = str(PurePosixPath(file).parent)
    package = file.split("/")[0]
    for name in dict.fromkeys(imports(source, file)):
        top = name.split(".")[0]
        if top in PACKAGES:
            found.append(f"{file} imports {name} by its bare name: use a relative import")
        if name == "swarm_node" or top in ("tests", "scripts"):
            found.append(f"{file} imports {name}: only modules of the rooms may be imported")
        if name == COMPUTED and file not in COMPUTED_IN:
            found.append(f"{file} imports {name}: nobody sees what that is")
        for what, places in ONLY_IN.items():
            if top == what and not any(is_in(file, place) for place in places):
                found.append(f"{file} imports {name}: only {', '.join(places)} may")
        for place, never in NEVER_IN.items():
            if is_in(file, place) and any(name == what or name.startswith(f"{what}.") for what in never):
                found.append(f"{file} imports {name}: nothing in {place} may")
        target = module_of(name)
        if target is None:
            continue
        theirs = str(PurePosixPath(target).parent)
        other = target.split("/")[0]
        if other not in PACKAGES[package] and not (is_in(file, COMPOSITION_ROOT) and other == "client"):
            found.append(f"{file} imports {name}: {package} may import {', '.join(PACKAGES[package])}")
        elif other == package and theirs != room and floor_of(theirs) >= floor_of(room):
            found.append(f"{file} imports {name}: {theirs} is not below {room}")
        found += (
            f"{file} imports {name}: {place} and {apart} are apart"
            for place, apart in APART.items()
            if is_in(file, place) and is_in(target, apart)
        )
    return found


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """Each module, and the modules it imports."""
    return {
        file: frozenset(
            target
            for name in imports((ROOT / file).read_text(), file)
            if (target := module_of(name)) is not None and target != file
        )
        for file in FILES
    }


def circles(graph: Mapping[str, frozenset[str]]) -> list[set[str]]:
    """Groups of modules that import each other: what is left after modules are taken away that import nothing
    of what is left, or that nothing of it imports."""
    left = dict(graph)
    while True:
        imported = frozenset(chain.from_iterable(left.values()))
        kept = {file: targets & left.keys() for file, targets in left.items() if targets and file in imported}
        if kept == left:
            return [set(left)] if left else []
        left = {file: targets & kept.keys() for file, targets in kept.items()}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room: str) -> None:
    files = [file for file in FILES if str(PurePosixPath(file).parent) == room]
    assert list(chain.from_iterable(violations((ROOT / file).read_text(), file) for file in files)) == []


def test_every_room_has_a_floor() -> None:
    assert sorted(chain.from_iterable(chain.from_iterable(FLOORS.values()))) == ROOMS


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(arrows()) == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small_and_says_what_it_holds(room: str) -> None:
    modules = [path for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    door = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))
    assert door, f"{room}/__init__.py does not say what the room holds"
    if room not in PACKAGES:  # a package's docstring may show how it is used, too
        assert len(door.splitlines()) <= MOST_LINES_AT_THE_DOOR
        assert re.search(r"\b(no|nothing|nowhere|only)\b", door), (
            f"{room} does not say what it must not touch"
        )


def test_tests_and_scripts_are_in_rooms_too() -> None:
    """Tests mirror the rooms; no folder of either is a corridor."""
    for top in ("tests", "scripts"):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES
    mirrored = {
        path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")
    }
    others = {room for room in mirrored if room.split("/")[0] not in PACKAGES}
    assert mirrored - others <= set(ROOMS)
    assert {room.split("/")[0] for room in others} == {"project", "scripts", "swarms"}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("swarm/protocol/wire.py", "from ...dht import records"),
        ("swarm/routing/search.py", "import torch"),
        ("swarm/routing/search.py", "import asyncio"),
        ("swarm/routing/search.py", "from ..links.link import NodeLink"),
        ("swarm/transport/p2pd/daemon.py", "from ..direct import stream"),
        ("dht/delegated/directory.py", "from libp2p.peer.id import ID"),
        ("dht/records/bodies.py", "from ...shards.formats.config import ModelConfig"),
        ("dht/records/keys.py", "def f():\n    from ..kademlia.node import Node"),
        ("client/hops/hop.py", "from ... import node\nfrom ...node.engine.engine import Engine"),
        ("client/hops/hop.py", "if TYPE_CHECKING:\n    from ..session.swarm_session import SwarmSession"),
        ("node/sessions/server.py", "import swarm_node.client"),
        ("node/sessions/server.py", "import hivemind"),
        ("node/engine/batching/scheduler.py", "import torch"),
        ("node/cli/serving/serve.py", "import torch"),
        ("shards/models/llama.py", "from transformers import AutoModel"),
        ("shards/models/llama.py", "import mlx.core as mx"),
        ("shards/models/llama.py", "from ...swarm.transport.interface import Transport"),
        ("shards/models/llama.py", "from swarm.types import Span"),
        ("client/generation.py", "def f():\n    from transformers import Cache"),
        ("client/generation.py", "import socket"),
        ("client/generation.py", "import swarm_node as everything"),
        ("client/generation.py", "import_module(name)"),
        ("client/gateway/opening.py", "from ..hf.model import SwarmModelForCausalLM"),
        ("client/gateway/openai/requests.py", "from ...hf import cache"),
        ("client/guided/guide.py", "from ..routing.bans import Bans"),
        ("client/decoding/answer.py", "from ...swarm.transport.addresses import bare_host"),
        ("node/sessions/server.py", "from ..presence.announcer import Announcer"),
        ("node/node.py", "from tests.doubles.toy_engine import ToyEngine"),
        ("swarm/routing/search.py", "import importlib\nimportlib.import_module('..links.link', __package__)"),
        ("swarm/routing/search.py", "__import__('swarm_node.dht.memory')"),
        ("swarm/routing/search.py", "import swarm_node.client as c"),
        ("swarm/routing/search.py", "from ..links.link import *"),
    ],
)
def test_the_check_sees_a_wrong_import(file: str, line: str) -> None:
    assert len(violations(line, file)) >= 1


def test_the_check_sees_a_circle() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str]()}
    assert circles({file: frozenset(targets) for file, targets in graph.items()}) == [{"b", "c"}]


def test_the_command_line_may_join_client_and_node() -> None:
    source = "from ....client.swarm_model import SwarmModel\nfrom ...node import Node"
    assert violations(source, "node/cli/serving/serve.py") == []
