"""A model by name: on this machine, in the swarm, on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint.known_models import KnownModels
from swarm_node.shards.checkpoint.local_models import LocalModels
from swarm_node.shards.checkpoint.lookup import (
    ModelNotFoundError,
    Source,
    find_local,
    refuse_broken,
    resolve_model,
    resolve_name,
)
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.gguf.reader import gguf_files
from swarm_node.swarm.errors import CheckpointError, UsageError
from swarm_node.swarm.names import ModelName
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.shards.conftest import GGUFLlama

HFLlamaIn = Callable[..., Path]
ONE, TWO = ModelRef("demo", "ab12" * 16, 4), ModelRef("demo", "cd34" * 16, 4)
OTHER = ModelRef("owner/TinyLlama-1.1B", "ee" * 32, 22)


class Index:
    def __init__(self, *refs: ModelRef) -> None:
        self.refs = list(refs)
        self.nodes: list[NodeInfo] = []

    async def models(self) -> list[ModelRef]:
        return self.refs

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]:
        return self.nodes


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: HFLlamaIn) -> LocalModels:
    """``mine`` once, ``twice`` in two folders with the same weights, ``variants`` with different ones."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    (hf_llama_in(one, "mine") / "tokenizer.json").write_text("{}")
    for folder in (one, two):
        hf_llama_in(folder, "twice")
        hf_llama_in(folder, "variants", seed=len(folder.name + str(folder == one)))
    return LocalModels([one, two])


def ref_of(path: str) -> ModelRef:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.ref


async def test_what_is_here_needs_no_swarm(places: LocalModels) -> None:
    location = await resolve_model("MINE", None, places)
    assert (location.name, location.source) == ("mine", Source.LOCAL)
    assert ref_of(location.path).name == "mine"
    assert find_local("mine", places) == location
    by_digest = await resolve_model(f"mine@{ref_of(location.path).digest[:8]}", None, places)
    assert by_digest.path == location.path
    assert (await resolve_model("twice", None, places)).name == "twice", "the same model in two folders"


async def test_paths_are_no_names(
    places: LocalModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (str(tmp_path / "missing"), "./mine", "~/mine", "./x.gguf"):
        location = await resolve_model(path, Index(OTHER), places)
        assert (location.source, location.path) == (Source.LOCAL, path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert (await resolve_model("mine", None, places)).path != "mine", (
        "a folder of that name that is no model"
    )
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert (await resolve_model(Path("mine"), None, places)).path == "mine"


async def test_a_name_may_have_its_ending_or_the_number_of_a_part(
    tmp_path: Path, gguf_llama: GGUFLlama
) -> None:
    gguf_llama("F32").rename(tmp_path / "smol-Q4_1.gguf")
    first = gguf_llama("F32", name="big.gguf", split=8)
    here = LocalModels([tmp_path])
    for name in ("smol-Q4_1.gguf", "SMOL-q4_1"):
        location = await resolve_model(name, None, here)
        assert (location.name, location.path) == ("smol-Q4_1", str(tmp_path / "smol-Q4_1.gguf"))
    parts = [path.name for path in gguf_files(first)]
    for name in (parts[0].removesuffix(".gguf"), parts[1], "big"):
        assert (await resolve_model(name, None, here)).name == "big"
    for name in ("TinyLlama-1.1B.gguf", "tinyllama-1.1b-00001-of-00002.gguf"):
        assert (await resolve_model(name, Index(OTHER), here)).ref == OTHER, "in the swarm"
    with pytest.raises(ModelNotFoundError, match=r"no model 'smoll-Q4_1\.gguf'") as caught:
        await resolve_model("smoll-Q4_1.gguf", Index(OTHER), here)
    assert caught.value.hint == "Did you mean 'smol-Q4_1'?"


async def test_what_cannot_run_says_so_by_its_name(tmp_path: Path, gguf_llama: GGUFLlama) -> None:
    first = gguf_llama("F32", name="split-miss.gguf", split=8)
    parts = gguf_files(first)
    parts[2].unlink()
    (tmp_path / "split-mist.gguf").write_bytes(b"GGUF")
    here, wanted = LocalModels([tmp_path]), ModelName("split-miss")
    why = f"split-miss on this machine cannot run: .* lacks 1 of .*: {re.escape(parts[2].name)}"
    with pytest.raises(CheckpointError, match=why) as caught:
        refuse_broken(wanted, here)
    assert "Download what is missing" in caught.value.hint
    with pytest.raises(CheckpointError, match=why):
        await resolve_model("split-miss", Index(), here)
    served = ModelRef("split-miss", "ab" * 32, 4)
    assert (await resolve_model("split-miss", Index(served), here)).source is Source.SWARM
    for name in ("owner/split-miss", "split-miss@abcd", f"split-miss@sha256:{'9' * 64}", "other"):
        refuse_broken(ModelName.parse(name), here)
    with pytest.raises(ModelNotFoundError) as nothing:
        await resolve_model("split-mis", Index(), here)
    assert "split-m" not in nothing.value.hint, "only what can run is offered"


async def test_variants_here_are_told_apart(places: LocalModels) -> None:
    assert find_local("variants", places) is None
    with pytest.raises(UsageError, match="2 different models are called variants on this machine") as caught:
        await resolve_model("variants", None, places)
    first, second = caught.value.hint.removeprefix("Say which: ").rstrip(".").split(" or ")
    found = [await resolve_model(choice, None, places) for choice in (first, second)]
    assert found[0].path != found[1].path
    served = ref_of(found[1].path)
    assert (await resolve_model("variants", Index(served), places)).path == found[1].path, "the swarm's one"


async def test_it_is_said_which_variant_here_was_taken(places: LocalModels, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        await resolve_model("variants", None, places)
    names = caught.value.hint.removeprefix("Say which: ").rstrip(".").split(" or ")
    refs = [ref_of((await resolve_model(name, None, places)).path) for name in names]
    served = (await resolve_model("variants", Index(refs[0]), places)).decision
    assert served is not None
    assert (served.reason, served.ref) == ("served", refs[0])
    assert (
        f"is {names[0]} here: the only one that the swarm serves; also here: {names[1]}." in served.sentence
    )
    known = KnownModels(tmp_path / "known_models")
    known.note_used("variants", refs[1].digest)
    used = (await resolve_model("variants", Index(refs[0]), places, known=known)).decision
    assert used is not None
    assert (used.reason, used.ref) == ("used", refs[1])
    assert "that this machine used last, on " in used.sentence


async def test_the_swarms_index_is_next(places: LocalModels) -> None:
    location = await resolve_model("tinyllama-1.1b", Index(ONE, OTHER), places)
    assert (location.source, location.ref, location.path) == (Source.SWARM, OTHER, "")
    with pytest.raises(UsageError, match="2 different models are called demo in this swarm") as caught:
        await resolve_model("demo", Index(ONE, TWO), places)
    assert "--model demo@ab12ab12ab12 or demo@cd34cd34cd34" in caught.value.hint
    assert (await resolve_model("demo@cd34", Index(ONE, TWO), places)).ref == TWO
    rooted = await resolve_model("demo@sha256:" + "9" * 64, Index(ONE), places)
    assert (rooted.ref, rooted.root) == (ONE, "9" * 64)


async def test_the_hub_is_last(places: LocalModels) -> None:
    location = await resolve_model("owner/Other", Index(ONE), places)
    assert (location.source, location.path) == (Source.HUB, "owner/Other")
    assert (await resolve_model("owner/TinyLlama-1.1B", Index(OTHER), places)).source is Source.SWARM
    with pytest.raises(ModelNotFoundError):
        await resolve_model("owner/Other@abcd", Index(ONE), places)


async def test_unknown_names_get_near_ones(places: LocalModels) -> None:
    with pytest.raises(ModelNotFoundError, match="nobody in this swarm") as caught:
        await resolve_model("tinylama", Index(OTHER), places)
    assert caught.value.hint == "Did you mean 'owner/TinyLlama-1.1B'?"
    assert caught.value.wanted.name == "tinylama"
    with pytest.raises(ModelNotFoundError, match=r"on this machine$") as caught:
        await resolve_model("mnie", None, places)
    assert caught.value.hint == "Did you mean 'mine'?"
    with pytest.raises(ModelNotFoundError) as caught:
        await resolve_model("demo", None, LocalModels())
    assert "models" in caught.value.hint


async def test_a_file_in_the_working_directory_is_near_what_its_owner_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_llama: GGUFLlama
) -> None:
    gguf_llama("F32").rename(tmp_path / "SmolLM2.Q4_1.gguf")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        await resolve_model("SmolLM2.Q4_1.guf", Index(OTHER), LocalModels())
    assert caught.value.hint == "Did you mean 'SmolLM2.Q4_1.gguf'?"
    with pytest.raises(ModelNotFoundError) as caught:
        await resolve_name(ModelName("SmolLM2.Q4_1.guf"), Index(OTHER), LocalModels())
    assert "Q4_1" not in caught.value.hint  # a stranger's word: what lies here is not told


async def test_the_only_model_needs_no_name(places: LocalModels) -> None:
    assert (await resolve_model(None, Index(ONE, ONE), places)).ref == ONE
    mine = ref_of((await resolve_model("mine", None, places)).path)
    assert (await resolve_model(None, Index(mine), places)).source is Source.LOCAL
    with pytest.raises(UsageError, match="serves 3 models") as caught:
        await resolve_model(None, Index(ONE, TWO, OTHER), places)
    assert "'demo@ab12ab12ab12' or 'demo@cd34cd34cd34' or 'owner/TinyLlama-1.1B'" in caught.value.hint
    with pytest.raises(ModelNotFoundError, match="no model yet"):
        await resolve_model(None, Index(), places)
    with pytest.raises(UsageError, match="no model given"):
        await resolve_model(None, None, places)


@pytest.mark.parametrize("text", ["owner/tiny:Q8_0", "Tiny:Q8_0", "tiny", "owner/tiny", None])
async def test_weights_that_no_node_shares_come_from_the_hub(
    places: LocalModels, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = ModelRef("owner/tiny:Q8_0", "ab" * 32, 4)
    asked: list[str] = []
    digest = ref.digest

    def hub_digest(name: str) -> str:
        asked.append(name)
        return digest if name == ref.name else ""

    monkeypatch.setattr("swarm_node.shards.checkpoint.lookup.hub_digest", hub_digest)
    index = Index(ref)
    found = await resolve_model(text, index, places)
    assert (found.source, found.path, found.ref) == (Source.HUB, ref.name, ref)
    assert asked[-1] == ref.name
    digest = "cd" * 32  # the hub has another model by now
    assert (await resolve_model(text, index, places)).source is Source.SWARM
    assert (await resolve_model(text, index, places, hub=False)).source is Source.SWARM or text is None
    digest = ref.digest
    index.nodes = [
        NodeInfo("p", (), ref, Span(0, 4), NodeState.ONLINE, weights_root="77" * 32, shares_weights=True)
    ]
    assert (await resolve_model(text, index, places)).source is Source.SWARM
    rooted = await resolve_model(f"{ref.name}@sha256:{'77' * 32}", index, places)
    assert (rooted.source, rooted.root) == (Source.SWARM, "77" * 32)


async def test_the_catalogues_names_lead_to_the_hubs(tmp_path: Path, gguf_llama: GGUFLlama) -> None:
    """Last of all; and on this machine, what came from the hub under the long name has the short one, too."""
    nothing = LocalModels([tmp_path])
    place = await resolve_model("qwen3-8b", None, nothing)
    assert (place.source, place.path) == (Source.HUB, "unsloth/Qwen3-8B-GGUF:Q4_K_M")
    assert (await resolve_model("QWEN3-8B:bf16", None, nothing)).path == "Qwen/Qwen3-8B"
    served = ModelRef("unsloth/Qwen3-8B-GGUF:Q4_K_M", "ab" * 32, 36)
    assert (await resolve_model("qwen3-8b", Index(served), nothing, hub=False)).ref == served
    assert (await resolve_model("qwen3-8b", Index(ModelRef("Qwen3-8B", "cd" * 32, 36)), nothing)).ref == (
        ModelRef("Qwen3-8B", "cd" * 32, 36)
    )
    with pytest.raises(ModelNotFoundError) as caught:
        await resolve_name(ModelName("qwen3-8b"), Index(), nothing, hub=False)
    assert caught.value.wanted == ModelName("unsloth/Qwen3-8B-GGUF:Q4_K_M")
    with pytest.raises(ModelNotFoundError) as caught:
        await resolve_model("qwen3-8c", Index(), nothing)
    assert "'qwen3-8b'" in caught.value.hint
    assert find_local("qwen3-8b", nothing) is None
    cache = tmp_path / "hub"
    snapshot = cache / "models--unsloth--Qwen3-8B-GGUF" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    gguf_llama("F32").rename(snapshot / "Qwen3-8B-Q4_K_M.gguf")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    here = LocalModels([], cache)
    found = find_local("qwen3-8b", here)
    assert found is not None
    assert (found.name, found.source) == ("unsloth/Qwen3-8B-GGUF:Q4_K_M", Source.LOCAL)
    assert await resolve_model("qwen3-8b", None, here) == found
