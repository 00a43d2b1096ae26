"""Each check finds what it is for, with the thing broken."""

from __future__ import annotations

import socket
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from swarm_node.node.doctor import computing, machine, models, network, software, swarm
from swarm_node.node.doctor.finding import Finding, Health
from swarm_node.swarm.membership.entry import SwarmEntry
from swarm_node.swarm.runtime import c_build
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, SignedRecord, Span


def the_one(findings: object) -> Finding:
    assert isinstance(findings, list)
    (finding,) = findings
    return finding


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def test_python_and_packages_are_well_here() -> None:
    assert the_one(software.look_at_python()).health is Health.OK
    assert software.look_at_packages()[0].health is Health.OK


def test_a_package_that_lacks_or_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy>=999", "no-such-thing>=1", "msgpack>=1", 'other>1; extra == "x"']
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    finding = the_one(list(software.look_at_packages()))
    assert finding.health is Health.FAIL
    assert f"numpy is {np.__version__} and must be >=999" in finding.says
    assert "no-such-thing is not installed" in finding.says
    assert "other" not in finding.says


def test_kernels_are_right_here() -> None:
    assert the_one(computing.look_at_kernels()).health is Health.OK


def test_kernels_that_compute_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    made = computing.native_int4

    def off_by_a_little(*arguments: object) -> object:
        linear = made(*arguments)  # type: ignore[arg-type]
        return lambda x: linear(x) + np.float32(0.01) * len(x)

    monkeypatch.setattr(computing, "native_int4", off_by_a_little)
    monkeypatch.setattr(computing.F8.__class__, "plain_payload", lambda self, rows: b"other")
    finding = the_one(computing.look_at_kernels())
    assert finding.health is Health.FAIL
    for wrong in ("int4 products", "int4 rows that depend on others", "codec f8"):
        assert wrong in finding.says
    assert "int8 products" not in finding.says


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWARM_NODE_CC", str(tmp_path / "no-such-cc"))
    c_build.compiler.cache_clear()
    try:
        finding = the_one(computing.look_at_kernels())
    finally:
        monkeypatch.undo()
        c_build.compiler.cache_clear()
    assert finding.health is Health.WARN
    assert str(tmp_path) in finding.details["error"]
    assert str(tmp_path) not in finding.says


def test_kernels_that_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_NODE_NATIVE", "0")
    assert "SWARM_NODE_NATIVE" in the_one(computing.look_at_kernels()).says


def test_little_memory_and_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda device: 5 * 10**8)
    assert the_one(machine.look_at_memory()).health is Health.WARN
    monkeypatch.setattr(machine, "LEAST_DISK", 1 << 60)
    disk = machine.look_at_disk()[0]
    assert (disk.check, disk.health) == ("disk", Health.WARN)
    assert str(home) in disk.advice
    assert str(home) not in disk.says


def test_keys_that_others_can_read(home: Path) -> None:
    key = home / "serve 1.key"
    key.write_bytes(b"k")
    key.chmod(0o600)
    assert the_one(machine.look_at_own_files()).health is Health.OK
    key.chmod(0o644)
    finding = the_one(machine.look_at_own_files())
    assert finding.health is Health.WARN
    assert finding.advice == f"Close them: chmod 600 '{key}'"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = the_one(network.look_at_ports({"gateway": port}))
    assert (finding.health, finding.says) == (Health.WARN, f"in use: {port} (gateway)")
    assert f"swarm-node gateway --port {port + 1}" in finding.advice
    assert the_one(network.look_at_ports({"gateway": port})).health is Health.OK


@pytest.mark.parametrize(
    ("lan", "apart", "health", "outside"),
    [
        (["192.168.1.5"], [], Health.OK, Health.WARN),
        (["fd00::2"], ["100.64.3.4"], Health.WARN, Health.WARN),
        ([], ["8.8.4.4"], Health.WARN, Health.UNKNOWN),
        ([], [], Health.WARN, Health.WARN),
    ],
)
def test_addresses(
    lan: list[str], apart: list[str], health: Health, outside: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "lan_addresses", lambda: lan)
    monkeypatch.setattr(network, "fours_apart", lambda: apart)
    found = network.look_at_interfaces()
    assert [each.health for each in found] == [health, outside]
    assert not [each for each in (*lan, *apart) if each in "".join(finding.says for finding in found)]


async def test_an_address_where_nobody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    peer = "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust"
    entry = SwarmEntry(initial_peers=(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}",), mdns=False, pure_python=True)
    finding = the_one(list(await swarm.look_at_swarm(entry)))
    assert finding.health is Health.FAIL
    assert str(port) not in finding.says


def node(ends: float, digest: str = "ab") -> NodeInfo:
    model = ModelRef("m", digest * 32, 4)
    return NodeInfo("p", (), model, Span(0, 4), NodeState.ONLINE, record=SignedRecord(ends, b""))


@pytest.mark.parametrize(
    ("shift", "health", "way"),
    [(0.0, Health.OK, "agrees"), (300.0, Health.FAIL, "behind"), (-300.0, Health.FAIL, "ahead of")],
)
def test_the_clock(shift: float, health: Health, way: str) -> None:
    now = time.time()
    finding = swarm.clock_of([node(now + 50 + shift), node(now + 45 + shift), node(now + 58 + shift)], now)
    assert finding.health is health
    assert way in finding.says
    assert swarm.clock_of([], now).health is Health.UNKNOWN


def _announced(digest: str, name: str = "m", n_blocks: int = 4) -> NodeInfo:
    return NodeInfo("p", (), ModelRef(name, digest, n_blocks), Span(0, 2), NodeState.ONLINE)


def test_models_of_one_name_are_counted_and_named_apart() -> None:
    (finding,) = swarm.models_of([_announced("ab" * 32), _announced("cd" * 32)])
    assert finding.says == "0 of 2 models have all blocks served"
    assert list(finding.details) == ["m@abababababab", "m@cdcdcdcdcdcd"]


def test_a_stranger_does_not_rename_a_model_or_make_it_shorter() -> None:
    honest = [_announced("ab" * 32), _announced("ab" * 32)]
    (finding,) = swarm.models_of([_announced("ab" * 32, "evil", 2), *honest])
    assert finding.health is Health.WARN
    assert finding.details == {"m": "no node serves 2-3"}


def test_of_many_models_some_are_named() -> None:
    many = [_announced(f"{number:064x}") for number in range(2000)]
    (finding,) = swarm.models_of(many)
    assert finding.says == "0 of 2000 models have all blocks served"
    assert len(finding.details) == swarm.MOST_MODELS


def test_model_files(home: Path) -> None:
    assert the_one(models.look_at_models()).says == "none is here"
    (home / "models").mkdir()
    damaged = home / "models" / "secret-name.gguf"
    damaged.write_bytes(b"GGUF\x03\x00\x00\x00")
    finding = the_one(models.look_at_models())
    assert (finding.health, finding.says) == (Health.WARN, "0 can be served, 1 cannot")
    assert str(damaged) in finding.details
    assert "secret" not in finding.says
    assert the_one(models.look_at_model(str(damaged))).health is Health.FAIL
    assert the_one(models.look_at_model("no-such-model")).health is Health.WARN


async def test_the_daemon_starts_here() -> None:
    assert the_one(list(await network.look_at_daemon())).health is Health.OK
