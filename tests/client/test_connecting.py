"""The options that everything shares that connects a client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarm_node.client import connecting, generate, swarm_model
from swarm_node.client.connecting import (
    ClientOptions,
    ConnectOptions,
    EntryOptions,
    HeadOptions,
    OnceOptions,
    SessionOptions,
    check_sideband,
    checked_entry,
    part,
)
from swarm_node.client.params import GenerateOptions
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.entry import swarm_entry
from tests import ROOT
from tests.doubles.fake_swarm import FakeSwarm


def test_the_guide_names_every_option() -> None:
    page = (ROOT / "docs/guides/python.md").read_text()
    assert [name for name in ConnectOptions.__annotations__ if f"`{name}`" not in page] == []


def test_each_option_has_one_place() -> None:
    parts = [set(kind.__annotations__) for kind in (EntryOptions, HeadOptions, SessionOptions)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set(OnceOptions.__annotations__) == {
        *ClientOptions.__annotations__,
        *GenerateOptions.__annotations__,
    }
    assert not set(ClientOptions.__annotations__) & set(GenerateOptions.__annotations__)


def test_what_each_takes_is_what_it_is_given() -> None:
    options = {"join": "invite", "wait": 3.0, "threads": 2, "device": "cuda"}
    assert part(options, EntryOptions) == {"join": "invite"}
    assert part(options, HeadOptions) == {"device": "cuda"}
    assert part(options, SessionOptions) == {"wait": 3.0}


def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(UsageError, match="'initial_peer'") as caught:
        checked_entry({"initial_peer": ["x"]})  # type: ignore[typeddict-unknown-key]
    assert "initial_peers" in caught.value.hint


def test_a_model_with_a_sideband_is_asked_among_members_only(tmp_path: Path) -> None:
    plain = FakeSwarm().local()
    telling = replace(plain, sideband=True)
    Identity.load_or_create(tmp_path / "key")
    keyed = swarm_entry(swarm="home", swarm_key=tmp_path / "key")
    for entry in (swarm_entry(), swarm_entry(swarm="home")):
        check_sideband([plain], entry)
        with pytest.raises(UsageError, match="toy tells every peer of a route its text") as caught:
            check_sideband([plain, telling], entry)
        assert "--allow-sideband" in caught.value.hint
    check_sideband([telling], keyed)


@pytest.mark.parametrize("allowed", [True, False])
async def test_what_was_opened_for_nothing_is_closed(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    swarm, closed = FakeSwarm(), []
    telling = replace(swarm.local(), sideband=True, close=lambda: closed.append("model"))

    async def opened(*_: object, **__: object) -> object:
        return telling

    async def join(*_: object) -> object:
        network = swarm.client_network()
        monkeypatch.setattr(network, "close", lambda: closing())
        return network

    async def closing() -> None:
        closed.append("network")

    monkeypatch.setattr(connecting, "open_model", opened)
    monkeypatch.setattr(connecting.ClientNetwork, "join", join)
    options: ClientOptions = {"allow_sideband": allowed}
    if allowed:
        assert (await connecting.open_models(["toy"], swarm_entry(), options))[1] == [telling]
        assert closed == []
        return
    with pytest.raises(UsageError, match="tells every peer"):
        await connecting.open_models(["toy"], swarm_entry(), options)
    assert closed == ["model", "network"]


def test_generate_gives_each_option_to_whom_it_concerns(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Model:
        def __enter__(self) -> Model:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def generate(self, prompt: str, **options: object) -> str:
            told["generate"] = options
            return prompt

    def connect(**options: object) -> Model:
        told["connect"] = options
        return Model()

    monkeypatch.setattr(swarm_model.SwarmModel, "connect", connect)
    assert generate("hi", model="m", wait=1.0, initial_peers=["x"], seed=3, stop="!") == "hi"
    assert told == {
        "connect": {"model": "m", "wait": 1.0, "initial_peers": ["x"]},
        "generate": {"seed": 3, "stop": "!"},
    }
