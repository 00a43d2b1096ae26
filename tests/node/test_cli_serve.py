"""What a serving node tells a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm_node.node.cli_parser import build_parser
from swarm_node.node.cli_serve import node_config, suggest_blocks
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.swarm.types import Span


@pytest.mark.parametrize(
    ("served", "suggested"), [("0-14", "15-29"), ("10-19", "20-29"), ("20-29", "0-19"), ("0-29", "0-29")]
)
def test_the_next_peer_is_told_blocks_that_help(served: str, suggested: str) -> None:
    event = NodeEvent("online", blocks=served, details={"n_blocks": 30})
    assert suggest_blocks(event) == suggested


KEY = Path("k.key")


def test_no_options_are_the_defaults_of_the_node() -> None:
    words = build_parser().parse_args(["serve", "--model", "m"])
    assert node_config(words, KEY) == NodeConfig(model="m", identity=KEY)


def test_every_option_reaches_the_node() -> None:
    options = {
        "blocks": ("0-9", Span(0, 10)),
        "initial-peers": ("a,b", ("a", "b")),
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
