"""A hub that sends too much, too slowly, or something else: what is taken of it, and what stays."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint import hub_answers, hub_gguf, hub_repo, hub_weights
from swarm_node.shards.checkpoint.hub_gguf import HubGGUF, chosen, gguf_of
from swarm_node.shards.checkpoint.hub_repo import HubRepo
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.errors import CheckpointError, NetworkError
from swarm_node.swarm.types import Span
from tests.shards.checkpoint.fake_hub import COMMIT, NAME, FakeHub, serving

FILE = "model.safetensors"
GGUF = f"{NAME}:Q8_0"
TAKEN = 32 << 20
"""Bytes that are under way before a sender without end notices that nobody reads."""


@pytest.fixture
def hub(
    tmp_path: Path,
    hf_llama: Callable[..., Path],
    gguf_llama: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FakeHub]:
    """A model in one file of each format, neither small."""
    monkeypatch.setattr(hub_weights, "_SMALL_FILE", 0)
    monkeypatch.setattr(hub_repo, "_MAX_PAUSE_S", 0.0)
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    directory = hf_llama(num_hidden_layers=6)
    (directory / "tokenizer.json").write_text("{}")
    shutil.move(gguf_llama("Q8_0", name="Tiny-Q8_0.gguf", blocks=6), directory / "Tiny-Q8_0.gguf")
    with serving(directory, tmp_path / "cache", monkeypatch) as server:
        yield server


def refused(name: str, match: str) -> CheckpointError | NetworkError:
    with pytest.raises((CheckpointError, NetworkError), match=match) as caught:
        open_checkpoint(name, blocks=Span(2, 4))
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def check_opens(name: str) -> None:
    with open_checkpoint(name, blocks=Span(2, 4)) as model:
        model.tensor("model.layers.2.mlp.up_proj.weight").dequantize()


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("endless 404", "cannot fetch .* answers 404"),
        ("endless 302", "no model"),  # it leads to nothing
        ("bomb 403", "cannot fetch .* answers 403"),
        ("bomb 206", "an encoding that was not asked for"),
        ("endless 206", "more than"),
        ("endless", "answers 200 where parts"),
    ],
)
def test_nothing_is_read_of_a_wrong_answer_to_a_range(hub: FakeHub, fault: str, match: str) -> None:
    hub.faults = [fault]
    refused(GGUF, match)
    assert hub.sent_of_endless < TAKEN
    check_opens(GGUF)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("endless", "sent more than"),
        ("endless 404", "answers 404"),
        ("bomb", "an encoding that was not asked for"),
        ("bomb 403", "answers 403"),
    ],
)
@pytest.mark.parametrize("file", ["", "config.json"])
def test_what_comes_whole_has_bounds(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, file: str, fault: str, match: str
) -> None:
    monkeypatch.setattr(hub_repo, "_LIST_BOUNDS", hub_repo.JsonBounds(1 << 20, 1 << 20))
    hub.whole_faults[file] = [fault]
    refused(NAME, match)
    assert hub.sent_of_endless < TAKEN
    check_opens(NAME)


@pytest.mark.parametrize("file", ["", "config.json", FILE])
def test_a_slow_answer_is_given_up(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    repo = HubRepo(NAME)
    listed = repo.files if file else {}
    asks: dict[str, Callable[[], object]] = {
        "": lambda: repo.files,
        "config.json": lambda: repo.fetch(file),
        FILE: lambda: repo.read_range(listed[file], 0, 99),
    }
    hub.whole_faults[file], hub.faults = ["drip"] * 6, ["drip 206"] * 6
    monkeypatch.setattr(hub_answers, "_LOOK_S", 0.0)
    with pytest.raises(NetworkError, match="less than 1 KiB a second") as caught:
        asks[file]()
    assert caught.value.hint
    assert len(hub.faults) + len(hub.whole_faults[file]) == 6  # what came of a file is not asked for again


def listing_with(hub: FakeHub, *entries: object) -> None:
    listing = hub.listing()
    listing["siblings"] += list(entries)  # type: ignore[operator]
    hub.listing = lambda: listing  # type: ignore[method-assign]


@pytest.mark.parametrize(("file", "most"), [("config.json", 16 << 20), ("tokenizer.json", 128 << 20)])
def test_small_files_are_small(hub: FakeHub, file: str, most: int) -> None:
    listing_with(hub, {"rfilename": file, "size": most + 1})
    with pytest.raises(CheckpointError, match=f"{file} .* has {most + 1} bytes .* more than {most}"):
        open_checkpoint(NAME, client=True)
    assert file not in {name for method, name, _ in hub.requests if method == "GET"}


def test_too_many_files(hub: FakeHub) -> None:
    listing_with(hub, *({"rfilename": f"{number}", "size": 1} for number in range(100_001)))
    refused(NAME, "no list of up to 100000 files")


def test_a_list_with_too_many_values(hub: FakeHub) -> None:
    listing_with(hub, {"rfilename": "x", "size": 1, "more": [[]] * (1 << 20)})
    refused(NAME, "more than 1048576 values")


def test_room_stays_on_the_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub_repo.shutil, "disk_usage", lambda _: usage(1 << 40, 0, 1_000_000_100))
    refused(NAME, "config.json of some-org/tiny-llama does not fit on the disk")
    monkeypatch.undo()


@pytest.mark.parametrize(
    "path",
    [
        "../../../../evil-Q8_0.gguf",
        "/tmp/evil-Q8_0.gguf",
        "a/../../evil-Q8_0.gguf",
        "a//evil-Q8_0.gguf",
        "C:\\evil-Q8_0.gguf",
        "evil\n-Q8_0.gguf",
        "evil\x1b[2J-Q8_0.gguf",
        f"{'e' * 300}-Q8_0.gguf",
        f"{'e/' * 600}-Q8_0.gguf",
        "",
    ],
)
def test_names_that_leave_the_folder_are_passed_over(
    hub: FakeHub, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    listing_with(hub, {"rfilename": path, "size": 5, "lfs": {"sha256": "7" * 64}})
    check_opens(GGUF)
    assert path not in HubRepo(NAME).files
    (line,) = {each.getMessage() for each in caplog.records if "hub_names_ignored" in each.getMessage()}
    assert line.isprintable()
    (hub.directory / "Tiny-Q8_0.gguf").unlink()
    hub.listing = lambda: {"sha": COMMIT, "siblings": [{"rfilename": path, "size": 5}]}  # type: ignore[method-assign]
    refused(GGUF, "has no GGUF model 'Q8_0'")


def test_many_models_of_one_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    models = gguf_of(f"m{number}-Q8_0.gguf" for number in range(3_000))
    looks, plain = [0], HubGGUF.quantization.fget  # type: ignore[attr-defined]

    def counted(model: HubGGUF) -> str:
        looks[0] += 1
        return str(plain(model))

    monkeypatch.setattr(hub_gguf.HubGGUF, "quantization", property(counted))
    for choice in ("Q8_0", "", "Q2_K"):
        with pytest.raises(CheckpointError) as caught:
            chosen("o/many", choice, models)
        assert "or 2988 others" in caught.value.hint
        assert len(caught.value.hint) < 1000
    assert looks[0] < 8 * len(models)


def test_many_models_that_say_to_have_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lists a hundred million names."""
    monkeypatch.setattr(HubGGUF, "paths", property(lambda _: pytest.fail("paths of a model not chosen")))
    models = gguf_of(f"m{number}-Q8_0-00001-of-01024.gguf" for number in range(500))
    assert chosen("o/many", "m7-q8_0-00009-of-01024.gguf", models).stem == "m7-Q8_0"
    with pytest.raises(CheckpointError, match="several GGUF models"):
        chosen("o/many", "Q8_0", models)


@pytest.mark.parametrize("name", [NAME, GGUF])
def test_a_wrong_header_is_fetched_again_once(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.faults = ["bytes"]
    check_opens(name)
    assert not hub.faults
    assert not list((tmp_path / "home").rglob("*.bad"))


@pytest.mark.parametrize("name", [NAME, GGUF])
def test_no_wrong_header_stays(hub: FakeHub, name: str) -> None:
    hub.faults = ["bytes", "bytes"]
    refused(name, "header|GGUF")
    assert not hub.faults
    check_opens(name)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_garbled_configuration_is_fetched_again(hub: FakeHub, tmp_path: Path, file: str) -> None:
    hub.tells_git_hash = False
    (hub.directory / "generation_config.json").write_text("{}")
    hub.whole_faults[file] = ["bytes", "bytes", "bytes"]
    refused(NAME, f"{file} is not usable JSON")
    check_opens(NAME)
    assert not hub.whole_faults[file]
    assert not list((tmp_path / "cache").rglob("*.bad"))


def test_small_files_have_the_content_that_the_list_tells(hub: FakeHub) -> None:
    hub.whole_faults["tokenizer.json"] = ["bytes"]
    HubRepo(NAME).fetch("tokenizer.json")
    assert not hub.whole_faults["tokenizer.json"]
    hub.whole_faults["config.json"] = ["bytes"] * 6
    refused(NAME, "other bytes of config.json")
    check_opens(NAME)


def test_a_whole_file_goes_on_where_it_broke_off(hub: FakeHub, tmp_path: Path) -> None:
    content = (hub.directory / FILE).read_bytes()
    hub.whole_faults[FILE] = ["broken"]
    hub.faults = ["short", "reset"]
    path = HubRepo(NAME).fetch(FILE)
    assert path.read_bytes() == content
    parts = [part for _, file, part in hub.requests if file == FILE]
    half = f"bytes={len(content) // 2}-{len(content) - 1}"
    assert parts == [None, half, f"bytes={len(content) - 1}-{len(content) - 1}"] + parts[3:]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_file_that_never_is_what_it_should_be_is_given_up(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_repo, "_HEADWAY", 1 << 20)
    (hub.directory / "tokenizer.json").write_bytes(bytes(5 << 19))
    hub.whole_faults["tokenizer.json"] = ["broken"] * 99
    hub.faults = ["bytes"] * 99
    with pytest.raises(NetworkError, match=r"tokenizer\.json of some-org/tiny-llama"):
        HubRepo(NAME).fetch("tokenizer.json")
    assert len(hub.faults) > 80


@pytest.mark.parametrize("size", [1 << 50, 10**400])
def test_sizes_that_no_file_has(hub: FakeHub, size: int) -> None:
    listing_with(hub, {"rfilename": "more.safetensors", "size": size})
    with pytest.raises(NetworkError, match="list of the files"):
        open_checkpoint(NAME)


def test_nothing_is_asked_for_but_files(hub: FakeHub) -> None:
    check_opens(NAME)
    assert not hub.strange_paths


def test_a_file_that_another_commit_has_too_is_not_fetched_again(hub: FakeHub) -> None:
    first = HubRepo(NAME).fetch("config.json")
    repo = HubRepo(NAME)
    repo.__dict__["_listed"] = ("7" * 40, repo.files)
    before = len(hub.requests)
    assert json.loads(repo.fetch("config.json").read_text()) == json.loads(first.read_text())
    assert len(hub.requests) == before
    assert repo.fetch("config.json").resolve() == first.resolve()


def test_a_token_goes_to_the_hub_alone(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    plain = hub_answers._asked

    def noted(url: str, headers: dict[str, str]) -> object:
        asked.append(headers)
        return plain(url, headers)

    monkeypatch.setattr(hub_answers, "_asked", noted)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repo = HubRepo(NAME)
    file = repo.files[FILE]
    assert "authorization" in asked[-1]
    hub.faults = ["redirect", ""]
    repo.read_range(file, 0, 9)
    assert "authorization" in asked[-1]
    hub.faults = ["elsewhere", ""]
    repo.read_range(file, 0, 9)
    assert "authorization" in asked[-2]
    assert "authorization" not in asked[-1]
