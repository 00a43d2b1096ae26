"""A client that finds no route, or no model, tells the swarm, waits, and says who answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.lab.tiny_model import write_tiny_model
from swarm_node.client.local_model import LocalModel, OnProgress
from swarm_node.client.model_opening import find_in_swarm, open_model, wanted_model
from swarm_node.client.network import ClientNetwork
from swarm_node.client.routing.demand import PAUSE_S, DemandTeller
from swarm_node.dht.directory import REFRESH_S
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.shards.checkpoint.local_models import LocalModels
from swarm_node.shards.checkpoint.lookup import ModelLocation, ModelNotFoundError, Source
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces import checked
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.holder import WholeFiles
from swarm_node.swarm.errors import CheckpointError, ModelMismatchError, NetworkError
from swarm_node.swarm.names import ModelName
from swarm_node.swarm.placement.demand import MAX_WANTED, Wanted, WantedModel
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, NodeState
from tests.doubles.clock import Clock
from tests.doubles.fake_swarm import MODEL, FakeSwarm, until

NOTHING_HERE = LocalModels()
TOY = WantedModel(MODEL.name, MODEL.digest)


class Sleeper(Clock):
    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class CountingDirectory(MemoryDirectory):
    def __init__(self, clock: Sleeper) -> None:
        super().__init__(MemoryStore(clock), "client")
        self.writes: list[tuple[str, ...]] = []

    async def want(self, models: Sequence[WantedModel]) -> None:
        self.writes.append(tuple(map(str, models)))
        await super().want(models)


@pytest.fixture
def clock() -> Sleeper:
    return Sleeper()


@pytest.fixture
def directory(clock: Sleeper) -> CountingDirectory:
    return CountingDirectory(clock)


@pytest.fixture
def teller(directory: CountingDirectory, clock: Sleeper) -> DemandTeller:
    return DemandTeller(directory, clock)


A, B = WantedModel("a"), WantedModel("b")


async def test_records_are_few(teller: DemandTeller, directory: CountingDirectory, clock: Sleeper) -> None:
    while clock.now < 3 * REFRESH_S:
        teller.miss(A)
        await clock.sleep(0.5)
    assert directory.writes == [("a",)] * 3, "one each REFRESH_S, however often it is missed"


async def test_changes_wait_a_moment(
    teller: DemandTeller, directory: CountingDirectory, clock: Sleeper
) -> None:
    for number in range(100):
        teller.miss(WantedModel(f"m{number}"))
        await clock.sleep(0.1)
    assert len(directory.writes) <= 100 * 0.1 / PAUSE_S + 1
    assert len(directory.writes[-1]) == MAX_WANTED


async def test_what_is_found_is_taken_back(teller: DemandTeller, directory: CountingDirectory) -> None:
    teller.found(A)
    teller.miss(A)
    teller.found(A)
    await until(lambda: directory.writes == [("a",), ()])
    assert await directory.wanted() == []


async def test_what_is_not_missed_any_more_is_not_refreshed(
    teller: DemandTeller, directory: CountingDirectory, clock: Sleeper
) -> None:
    teller.miss(A)
    await clock.sleep(0)
    await clock.sleep(REFRESH_S)
    teller.miss(B)
    await clock.sleep(0)
    assert directory.writes == [("a",), ("b",)]


async def test_the_last_word_is_written_before_the_end(directory: CountingDirectory, clock: Sleeper) -> None:
    teller = DemandTeller(directory, clock)
    teller.miss(A)
    await teller.close()
    await teller.close()
    teller.miss(B)
    assert await directory.wanted() == [Wanted("client", (A,))]


async def test_a_directory_that_takes_nothing_harms_nobody(
    teller: DemandTeller, directory: CountingDirectory
) -> None:
    directory.store.down = True
    teller.miss(A)
    await teller.close()
    assert directory.writes == [("a",)]


async def test_waiting_for_work_keeps_what_is_missed(
    teller: DemandTeller, directory: CountingDirectory, clock: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_node.client.routing.demand.PAUSE_S", 0.001)
    teller.miss(A)

    async def work() -> str:
        while len(directory.writes) < 4:
            clock.now += REFRESH_S / 2
            await asyncio.sleep(0.002)
        return "done"

    assert await teller.keep(work()) == "done"
    assert set(directory.writes) == {("a",)}

    async def fails() -> None:
        raise NetworkError("no")

    with pytest.raises(NetworkError):
        await teller.keep(fails())


async def test_an_unknown_model_is_asked_for_and_waited_for(
    teller: DemandTeller, directory: CountingDirectory, clock: Sleeper
) -> None:
    seen: list[str] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if clock.now >= 3:
            directory.store.put(replace(FakeSwarm(a="0-5").info("a"), state=NodeState.JOINING))

    location = await find_in_swarm(
        "TOY",
        directory,
        teller,
        local_models=NOTHING_HERE,
        wait=10,
        on_progress=seen.append,
        clock=clock,
        sleep=sleep,
    )
    assert (location.source, location.ref) == (Source.SWARM, MODEL)
    assert seen[0] == "Nobody serves TOY yet; idle nodes are asked (10 s left)"
    assert len(seen) == 3
    await clock.sleep(PAUSE_S)
    teller.miss(TOY)
    await teller.close()
    assert await directory.wanted() == [Wanted("client", (TOY,))], "until there is a route"


async def test_a_model_is_not_missed_before_anybody_could_tell_of_it(
    teller: DemandTeller, directory: CountingDirectory, clock: Sleeper
) -> None:
    directory.store.down = directory.store.is_alone = True

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if clock.now >= 2:
            directory.store.down = False
        if clock.now >= 4:
            directory.store.put(FakeSwarm(a="0-5").info("a"))

    location = await find_in_swarm(
        "toy", directory, teller, local_models=NOTHING_HERE, hub=False, clock=clock, sleep=sleep
    )
    assert (location.ref, clock.now) == (MODEL, 4)
    await teller.close()


async def test_who_does_not_wait_leaves_the_request(
    teller: DemandTeller, directory: CountingDirectory
) -> None:
    await MemoryDirectory(directory.store).announce(FakeSwarm(a="0-5").info("a"))
    with pytest.raises(ModelNotFoundError) as caught:
        await find_in_swarm("toyy", directory, teller, local_models=NOTHING_HERE)
    assert caught.value.hint.startswith("Did you mean 'toy'? Idle nodes are asked")
    await teller.close()
    assert await directory.wanted() == [Wanted("client", (WantedModel("toyy"),))]


def test_a_digests_first_characters_are_not_told() -> None:
    assert wanted_model(ModelName("toy", "abab")) == WantedModel("toy")
    assert wanted_model(ModelName("toy", MODEL.digest)) == TOY


class Opening:
    """``open_model`` over an in-memory swarm whose toy model has its files at ``there``."""

    def __init__(self, swarm: FakeSwarm) -> None:
        self.swarm = swarm
        self.network = swarm.client_network()
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.ref = MODEL

    def load(self, path: str) -> LocalModel:
        self.loaded.append(path)
        if path == "broken":
            raise CheckpointError("broken")
        return self.swarm.local(ref=self.ref, close=lambda: self.closed.append(path))

    async def fetch(self, location: ModelLocation, _: ClientNetwork, __: OnProgress | None) -> str:
        return f"cache of {location.name}"

    async def join(self) -> ClientNetwork:
        return self.network

    async def open(self, model: str | None, local_models: LocalModels = NOTHING_HERE) -> LocalModel:
        joining = asyncio.create_task(self.join())
        return await open_model(model, joining, self.load, fetch=self.fetch, local_models=local_models)


async def test_one_model_in_the_swarm_needs_no_name() -> None:
    opening = Opening(await FakeSwarm(a="0-5").start())
    opening.ref = ModelRef("files", MODEL.digest, MODEL.n_blocks)
    local = await opening.open(None)
    assert opening.loaded == ["cache of toy"]
    assert local.ref == MODEL, "called as the swarm calls it"


async def test_what_peers_sent_must_be_what_they_said() -> None:
    opening = Opening(await FakeSwarm(a="0-5").start())
    opening.ref = replace(MODEL, digest="99" * 32)
    with pytest.raises(ModelMismatchError, match="999999999999"):
        await opening.open("toy")
    assert opening.closed == ["cache of toy"]


async def test_what_the_hub_does_not_have_is_asked_for() -> None:
    opening = Opening(await FakeSwarm(a="0-5").start())

    def load(path: str) -> LocalModel:
        if path == "owner/tooy":
            raise NetworkError("the hub cannot be reached", hint="Check the connection.")
        return opening.load(path)

    joining = asyncio.create_task(opening.join())
    with pytest.raises(NetworkError, match="the hub cannot be reached") as caught:
        await open_model("owner/tooy", joining, load, fetch=opening.fetch, local_models=NOTHING_HERE)
    assert caught.value.hint.startswith("Did you mean 'toy'?")
    await opening.network.demand.close()
    assert [each.models for each in opening.swarm.store.wanted()] == [(WantedModel("owner/tooy"),)]


async def test_what_no_node_shares_is_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.shards.checkpoint.lookup.hub_digest", lambda name: MODEL.digest)
    opening = Opening(await FakeSwarm(a="0-5").start())
    local = await opening.open("owner/toy")
    assert (opening.loaded, local.ref) == (["owner/toy"], MODEL)

    def load(path: str) -> LocalModel:
        opening.ref = replace(MODEL, digest="99" * 32) if path == "owner/toy" else MODEL
        return opening.load(path)

    joining = asyncio.create_task(opening.join())
    local = await open_model("owner/toy", joining, load, fetch=opening.fetch, local_models=NOTHING_HERE)
    assert (opening.loaded[1:], opening.closed) == (["owner/toy", "cache of toy"], ["owner/toy"])
    assert local.ref == MODEL, "of another model that came from the hub meanwhile nothing is used"


async def test_what_is_damaged_here_comes_from_peers_again(tmp_path: Path) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    write_tiny_model(model)
    files = WholeFiles(manifest_of(model), model_files(model))
    cache = PieceCache(tmp_path / "cache")
    with cache.open(files.manifest, MODEL) as store:
        for piece in range(files.manifest.n_pieces):
            store.add(piece, files.read(piece))
    checked._known.clear()
    weights = store.path("model.safetensors")
    weights.write_bytes(bytes(weights.stat().st_size))
    opening = Opening(await FakeSwarm(a="0-5").start())

    def load(path: str) -> LocalModel:
        open_checkpoint(path, client=True).close()
        return opening.load(path)

    async def fetch(location: ModelLocation, _: ClientNetwork, __: OnProgress | None) -> str:
        assert location == ModelLocation(MODEL.name, Source.SWARM, ref=MODEL, root=files.manifest.root)
        with cache.find(location.root) as store:
            for piece in store.missing(range(files.manifest.n_pieces)):
                store.add(piece, files.read(piece))
        return str(store.folder)

    joining = asyncio.create_task(opening.join())
    local_models = LocalModels(fetched=cache)
    await open_model(MODEL.name, joining, load, fetch=fetch, local_models=local_models)
    assert opening.loaded == [str(store.folder)]


async def test_what_is_here_is_opened_before_the_swarm_answers(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_tiny_model(tmp_path / "mine")
    opening = Opening(FakeSwarm())
    never: asyncio.Task[ClientNetwork] = asyncio.create_task(asyncio.sleep(3600))  # type: ignore[arg-type]
    try:
        for name in ("mine", str(tmp_path / "mine")):
            await open_model(
                name, never, opening.load, fetch=opening.fetch, local_models=LocalModels([tmp_path])
            )
        with pytest.raises(CheckpointError):
            await open_model("./missing.gguf", never, lambda _: opening.load("broken"), fetch=opening.fetch)
    finally:
        never.cancel()
    assert opening.loaded == [str(tmp_path / "mine")] * 2 + ["broken"]


async def test_a_cancelled_opening_closes_what_it_opened(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    opening = Opening(FakeSwarm())
    loop, started, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def slow(path: str) -> LocalModel:
        loop.call_soon_threadsafe(started.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return opening.load(path)

    joining = asyncio.create_task(opening.join())
    task = asyncio.create_task(open_model(str(tmp_path), joining, slow, fetch=opening.fetch))
    await started.wait()
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await joining
    assert opening.closed == [str(tmp_path)]


async def test_a_client_without_a_route_says_so_and_takes_it_back() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    swarm.store.remove("b")
    network = swarm.client_network()
    router = swarm.router(demand=network.demand)
    seen: list[str] = []
    async with swarm.client(router=router, wait=0.0) as model:
        with pytest.raises(NoRouteError):
            await model.generate("x", max_new_tokens=1)
        await until(lambda: bool(swarm.store.wanted()))
        assert [each.models for each in swarm.store.wanted()] == [(TOY,)]
    async with swarm.client(router=router, wait=5.0, on_progress=seen.append) as model:
        swarm.announce("b", state=NodeState.JOINING)
        answer = asyncio.create_task(model.generate("x", max_new_tokens=1))
        await until(lambda: any("…b is loading 3-5" in line for line in seen))
        assert swarm.store.wanted()
        swarm.announce("b")
        await answer
        await until(lambda: not swarm.store.wanted())
    await network.close()


async def test_a_network_has_one_teller() -> None:
    given = GivenNetwork(MemoryNetwork().transport("client"), MemoryDirectory())
    network = ClientNetwork(given)
    assert ClientNetwork(given, network.demand).demand is network.demand
    await network.close()
