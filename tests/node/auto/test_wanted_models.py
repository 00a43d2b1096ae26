"""What an idle node loads for others, from the demand in the directory to where the model is."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lab.tiny_model import write_tiny_model
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.auto.wanted_models import BACK_OFF_S, WantedModels
from swarm_node.shards.checkpoint.local_models import LocalModels
from swarm_node.shards.checkpoint.lookup import Source
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.placement.demand import SPREAD_S, Idle, WantedModel
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.doubles.clock import Clock

SHARED = ModelRef("owner/shared", "ab" * 32, 10)


class Swarm:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock)

    async def want(self, peer: str, *names: str) -> None:
        await MemoryDirectory(self.store, peer).want([WantedModel(name) for name in names])

    async def serve(self, model: ModelRef, blocks: str, *, shares: bool = False) -> None:
        root = "12" * 32 if shares else ""
        info = NodeInfo(
            f"node {blocks}",
            (),
            model,
            Span.parse(blocks),
            NodeState.ONLINE,
            weights_root=root,
            shares_weights=bool(root),
        )
        await MemoryDirectory(self.store).announce(info)

    def wanted_models(self, *allowed: str, local_models: LocalModels | None = None) -> WantedModels:
        directory = MemoryDirectory(self.store, "idle")
        return WantedModels(
            directory, "idle", allowed, local_models=local_models or LocalModels(), clock=self.clock
        )

    async def pick(self, wanted_models: WantedModels, idle: Idle = Idle()) -> tuple[str, Source, str] | None:  # noqa: B008
        """What it picks once every idle node's turn has come."""
        assert await wanted_models.pick(idle) is None, "not before its turn"
        self.clock.now += SPREAD_S
        wanted = await wanted_models.pick(idle)
        return (
            None if wanted is None else (wanted.location.name, wanted.location.source, wanted.location.path)
        )


@pytest.fixture
def swarm() -> Swarm:
    return Swarm()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "mine").mkdir()
    write_tiny_model(folder / "mine")
    return folder


async def test_a_model_on_the_disk(swarm: Swarm, disk: Path) -> None:
    wanted_models = swarm.wanted_models("any", local_models=LocalModels([disk]))
    assert await wanted_models.pick(Idle()) is None
    await swarm.want("client", "MINE")
    assert await swarm.pick(wanted_models) == ("mine", Source.LOCAL, str(disk / "mine"))


async def test_a_model_that_peers_share(swarm: Swarm) -> None:
    await swarm.serve(SHARED, "0-3", shares=True)
    await swarm.want("client", "shared")
    assert await swarm.pick(swarm.wanted_models("any")) == ("owner/shared", Source.SWARM, "")
    assert await swarm.pick(swarm.wanted_models("owner/other")) is None, "its owner did not allow it"
    assert await swarm.pick(swarm.wanted_models("shared@abab")) == ("owner/shared", Source.SWARM, "")
    assert await swarm.pick(swarm.wanted_models("shared@cdcd")) is None


async def test_what_nobody_shares_cannot_be_had(swarm: Swarm) -> None:
    await swarm.serve(SHARED, "0-3")
    await swarm.want("client", "shared")
    assert await swarm.pick(swarm.wanted_models("any")) is None


async def test_the_hub_is_asked_only_for_what_the_owner_named(swarm: Swarm) -> None:
    await swarm.want("stranger", "some/model")
    assert await swarm.pick(swarm.wanted_models("any")) is None
    assert await swarm.pick(swarm.wanted_models("some/model")) == ("some/model", Source.HUB, "some/model")


@pytest.mark.parametrize(
    ("allowed", "wish"),
    [
        ("owner/X-GGUF:Q8_0", "x"),
        ("owner/X-GGUF:Q8_0", "X-GGUF:q8_0"),
        ("owner/X-GGUF:Q8_0", "owner/X-GGUF"),
        ("owner/X", "X.gguf"),
        ("owner/X", "x-Q4_K_M"),
    ],
)
async def test_the_owners_name_and_the_wish_may_each_say_more(swarm: Swarm, allowed: str, wish: str) -> None:
    await swarm.want("client", wish)
    assert await swarm.pick(swarm.wanted_models(allowed)) == (allowed, Source.HUB, allowed)


@pytest.mark.parametrize("wish", ["other/X-GGUF:Q8_0", "X-GGUF:Q4_K_M", "Y"])
async def test_another_model_is_not_what_the_owner_named(swarm: Swarm, wish: str) -> None:
    await swarm.want("client", wish)
    assert await swarm.pick(swarm.wanted_models("owner/X-GGUF:Q8_0")) is None


async def test_what_nobody_shares_comes_from_the_hub_if_the_owner_named_it(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_node.shards.checkpoint.lookup.hub_digest", lambda name: SHARED.digest)
    await swarm.serve(SHARED, "0-3")
    await swarm.want("client", "shared")
    named = swarm.wanted_models("owner/shared")
    assert await swarm.pick(named) == ("owner/shared", Source.HUB, "owner/shared")
    assert await swarm.pick(swarm.wanted_models("shared")) is None


@pytest.mark.parametrize("name", ["{disk}/mine", "../mine", "{disk}/mine/model.safetensors", "~/x.gguf"])
async def test_a_strangers_name_is_no_path(swarm: Swarm, disk: Path, name: str) -> None:
    await swarm.want("stranger", name.format(disk=disk))
    wanted_models = swarm.wanted_models("any", local_models=LocalModels([disk.parent / "nothing"]))
    assert await swarm.pick(wanted_models) is None


async def test_weights_other_than_the_wanted_ones_are_not_loaded(swarm: Swarm, disk: Path) -> None:
    directory = MemoryDirectory(swarm.store, "client")
    wanted_models = swarm.wanted_models("any", local_models=LocalModels([disk]))
    await directory.want([WantedModel("mine", "99" * 32)])
    assert await swarm.pick(wanted_models) is None
    with open_checkpoint(str(disk / "mine")) as checkpoint:
        digest = checkpoint.ref.digest
    await directory.want([WantedModel("mine", digest)])
    assert await swarm.pick(wanted_models) == ("mine", Source.LOCAL, str(disk / "mine"))


async def test_what_failed_is_left_alone_for_a_time(swarm: Swarm, disk: Path) -> None:
    wanted_models = swarm.wanted_models("mine", local_models=LocalModels([disk]))
    await swarm.want("client", "mine")
    assert await swarm.pick(wanted_models) is not None
    wanted = await wanted_models.pick(Idle())
    assert wanted is not None
    wanted_models.failed(wanted.demand)
    assert await wanted_models.pick(Idle()) is None
    swarm.clock.now += BACK_OFF_S + SPREAD_S
    await swarm.want("client", "mine")
    assert await wanted_models.pick(Idle()) is not None
    assert await wanted_models.pick(Idle("ab" * 32, in_use=True)) is None


async def test_demand_that_ends_is_forgotten(swarm: Swarm, disk: Path) -> None:
    wanted_models = swarm.wanted_models("any", local_models=LocalModels([disk]))
    await swarm.want("client", "mine")
    assert await wanted_models.pick(Idle()) is None
    await swarm.want("client")
    swarm.clock.now += SPREAD_S
    assert await wanted_models.pick(Idle()) is None
    await swarm.want("client", "mine")
    assert await swarm.pick(wanted_models) is not None, "seen anew: the turn begins anew"
