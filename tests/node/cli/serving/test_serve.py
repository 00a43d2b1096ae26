"""What a serving node tells a person."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.serving.display import Display
from swarm_node.node.cli.serving.serve import node_config
from swarm_node.node.cli.shared.arguments import byte_size
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.shards.models import devices
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.limited import Bandwidth
from swarm_node.swarm.types import Span


@pytest.mark.parametrize("shares", [True, False])
def test_the_next_peer_is_told_a_name_and_whether_it_can_fetch_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shares: bool
) -> None:
    path = tmp_path / "tiny.Q4_1.gguf"
    path.touch()
    display = Display(build_parser().parse_args(["serve", "--model", str(path)]))
    display.on_event(NodeEvent("sharing", details={"bytes": 1500}))
    fetched = {"bytes": 2_345_000_000, "bytes_by_source": {"the hub": 45_000}, "seconds": 1.0}
    display.on_event(NodeEvent("fetched", details=fetched))
    if not shares:
        display.on_event(NodeEvent("not_sharing", details={"message": "the files changed"}))
    details = {"decode_ms_per_block": 1.0, "prefill_tokens_per_s": 1.0, "state_sessions": 1 + shares}
    display.on_event(NodeEvent("online", model="tiny.Q4_1", blocks="0-2", details=details))
    told = capsys.readouterr().err
    assert "serve --model tiny.Q4_1\n" in told
    assert "files, 2 kB, with" in told
    assert "Fetched 2.3 GB of weights in 1.0 s: 45 kB from the hub." in told
    assert ("this node does not share them" in told) == (not shares)
    assert ("KV cache, states of 2 sessions, " if shares else "KV cache, states of 1 session, ") in told


KEY = Path("k.key")


def test_no_options_are_the_defaults_of_the_node() -> None:
    words = build_parser().parse_args(["serve", "--model", "m"])
    assert node_config(words, KEY) == NodeConfig(model="m", identity=KEY, auto=True, auto_device=True)


def test_megabits_are_bytes_a_second() -> None:
    parser = build_parser()
    config = node_config(parser.parse_args(["serve", "--model", "m", "--bandwidth-up", "2.5"]), KEY)
    assert config.bandwidth == Bandwidth(up=312_500)
    with pytest.raises(UsageError, match="give 1 or more"):
        parser.parse_args(["serve", "--model", "m", "--bandwidth-down", "0.5"])


@pytest.mark.parametrize(
    ("words", "blocks", "auto"),
    [
        ([], None, True),
        (["--blocks", "auto"], None, True),
        (["--blocks", "all"], None, False),
        (["--blocks", "3"], Span(3, 4), False),
    ],
)
def test_who_chooses_the_blocks(words: list[str], blocks: Span | None, auto: bool) -> None:
    config = node_config(build_parser().parse_args(["serve", "--model", "m", *words]), KEY)
    assert (config.blocks, config.auto) == (blocks, auto)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("500MiB", 500 << 20),
        ("1.5G", 3 << 29),
        ("2GB", 2 * 10**9),
        ("512 mib", 512 << 20),
        ("3t", 3 << 40),
    ],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert byte_size(text) == size
    assert (
        node_config(build_parser().parse_args(["serve", "--model", "m", "--memory", text]), KEY).memory
        == size
    )


@pytest.mark.parametrize("text", ["", "8", "GiB", "-1GiB", "8 bytes", "0GiB", "1e3MiB", "9" * 400 + "G"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="8GiB"):
        byte_size(text)


PEERS = tuple(f"/ip4/192.0.2.{host}/tcp/1/p2p/{Identity.generate().peer_id}" for host in (1, 2))


def test_every_option_reaches_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "check_device", lambda name: None)  # whatever this machine has
    options = {
        "blocks": ("0-9", Span(0, 10)),
        "initial-peers": (",".join(PEERS), PEERS),
        "host": ("127.0.0.1", "127.0.0.1"),
        "port": ("7", 7),
        "device": ("cuda", "cuda"),
        "dtype": ("float32", "float32"),
        "quantize": ("int8", "int8"),
        "kernels": ("torch", "torch"),
        "threads": ("3", 3),
        "kv-cache-tokens": ("4096", 4096),
        "kv-dtype": ("int8", "int8"),
        "prefill-target-ms": ("40", 40.0),
        "max-sessions-per-peer": ("5", 5),
        "max-kv-share-per-peer": ("0.5", 0.5),
        "idle-session-seconds": ("60", 60.0),
        "drain-seconds": ("1.5", 1.5),
        "journal-mib": ("0", 0),
    }
    words = [word for name, (text, _) in options.items() for word in (f"--{name}", text)]
    arguments = build_parser().parse_args(
        ["serve", "--model", "m", *words, "--announce", "x", "--no-prefix-cache"]
    )
    config = node_config(arguments, KEY)
    for name, (_, value) in options.items():
        assert getattr(config, name.replace("-", "_")) == value
    assert config.announce_maddrs == ("x",)
    assert config.prefix_cache is False


def test_remarks_are_one_line_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(build_parser().parse_args(["serve", "--model", "m"]))
    details = {"message": "m holds no [red]tokenizer.json", "hint": "Have it written: python -c 'x'"}
    display.on_event(NodeEvent("tokenizer_unreadable", details=details))
    display.on_event(NodeEvent("waiting", details={"message": "nobody has m", "hint": "Did you mean 'n'?"}))
    display.on_event(
        NodeEvent("coarse_codecs", details={"codecs": ["int8s", "f8"], "errors": {"int8s": 0.031, "f8": 0.2}})
    )
    display.on_event(NodeEvent("coarse_codecs", details={"codecs": [], "errors": {}}))
    remark, waiting, coarse = capsys.readouterr().err.splitlines()
    assert coarse == "Rows lose too much in int8s (3.1%), f8 (20.0%): new sessions send finer ones."
    assert remark == (
        "No client can read this model: m holds no [red]tokenizer.json. It is served as it is until the node "
        "starts with other files. Have it written: python -c 'x'"
    )
    assert waiting == "Waiting: nobody has m. Did you mean 'n'?"


def test_a_node_that_rests_is_not_said_to_have_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(build_parser().parse_args(["serve", "--model", "m"]))
    display.on_rest("it serves at 22:00-07:00, and it is 12:00")
    display.on_event(NodeEvent("stopped"))
    told = capsys.readouterr().err
    assert "Resting: it serves at 22:00-07:00" in told
    assert "Stopped" not in told
    assert told.splitlines()[-1] == "It has left the swarm."
    display.on_rest("")
    display.on_event(NodeEvent("stopped"))
    assert capsys.readouterr().err.splitlines() == ["Serving again.", "Stopped."]


@pytest.mark.parametrize(
    ("events", "told"), [(["listening", "stopped"], True), (["error", "stopped"], False)]
)
def test_what_never_ran_is_not_said_to_have_stopped(
    events: list[str], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is said last, and alone."""
    display = Display(build_parser().parse_args(["serve", "--model", "m"]))
    for name in events:
        display.on_event(NodeEvent(name, details={"message": "there is no model at m", "hint": ""}))
    assert ("Stopped." in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--no-direct", "--pure-python"], "one of the two"),
        (["--no-direct", "--direct-port", "1"], "Leave --no-direct out"),
        (["--announce-direct", "/ip4/203.0.113.5/tcp/0"], "--direct-port"),
        (["--announce-direct", "/dns4/a.example/tcp/0/direct"], "--direct-port"),
    ],
)
def test_direct_options_that_contradict(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        node_config(build_parser().parse_args(["serve", "--model", "m", *words]), KEY)
    assert hint in caught.value.hint


def test_a_peer_is_not_said_to_be_near(capsys: pytest.CaptureFixture[str]) -> None:
    """It may have been met at the address of an invite, far away."""
    display = Display(build_parser().parse_args(["serve", "--model", "m", "--join", "invite"]))
    display.on_event(NodeEvent("peer_found", details={"found": "12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGv"}))
    said = capsys.readouterr().err
    assert "Found peer …" in said
    assert "network" not in said


def test_where_the_direct_listener_is_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(build_parser().parse_args(["serve", "--model", "m"]))
    direct = "/ip4/192.168.1.5/tcp/32331/direct"
    display.on_event(NodeEvent("listening", peer_id="12D3", details={"direct": [direct]}))
    assert direct in capsys.readouterr().err
    display.on_event(NodeEvent("listening", peer_id="12D3", details={"direct": []}))
    assert "Directly" not in capsys.readouterr().err
