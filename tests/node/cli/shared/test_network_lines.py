"""How a node tells where it is and how to join it."""

from __future__ import annotations

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared.network_lines import invite_note, join_command, reach_note
from swarm_node.node.config import NodeEvent


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ((), "swarm-node serve --model m"),
        (("--blocks", "15-29"), "swarm-node serve --model m"),  # others may serve 0-14 already
        (("--swarm", "my den"), "swarm-node serve --model m --swarm 'my den'"),
        (("--no-mdns",), "swarm-node serve --model m --initial-peers /ip4/192.168.1.5/tcp/1/p2p/x"),
        (("--host", "127.0.0.1"), "swarm-node serve --model m --initial-peers /ip4/192.168.1.5/tcp/1/p2p/x"),
        (("--swarm", "home", "--swarm-key", "k"), "swarm-node serve --model m --join INVITE"),
        (("--join", "swn1x"), "swarm-node serve --model m --join INVITE"),
    ],
)
def test_the_next_peer_is_told_how_to_get_in(words: tuple[str, ...], command: str) -> None:
    arguments = build_parser().parse_args(["serve", "--model", "m", *words])
    event = NodeEvent("online", maddrs=("/ip4/127.0.0.1/tcp/1/p2p/x", "/ip4/192.168.1.5/tcp/1/p2p/x"))
    assert join_command(arguments, event, "m") == command


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ((), "On another network: see `swarm-node invite`."),
        (("--swarm", "my den"), "On another network: see `swarm-node invite --swarm 'my den'`."),
        (("--no-mdns",), ""),
        (("--host", "127.0.0.1"), ""),
        (("--join", "swn1x"), "`swarm-node invite --join INVITE` prints INVITE."),
        (
            ("--swarm", "my den", "--swarm-key", "my key"),
            "`swarm-node invite --initial-peers /ip4/192.168.1.5/tcp/1/p2p/x "
            "--swarm 'my den' --swarm-key 'my key'` prints INVITE.",
        ),
        (
            ("--swarm-key", "k", "--initial-peers", "/ip4/192.168.1.6/tcp/1/p2p/y"),
            "`swarm-node invite --swarm-key k --initial-peers /ip4/192.168.1.6/tcp/1/p2p/y` prints INVITE.",
        ),
    ],
)
def test_it_is_said_how_to_get_an_invite_to_this_swarm(words: tuple[str, ...], note: str) -> None:
    arguments = build_parser().parse_args(["serve", "--model", "m", *words])
    event = NodeEvent("online", maddrs=("/ip4/127.0.0.1/tcp/1/p2p/x", "/ip4/192.168.1.5/tcp/1/p2p/x"))
    assert invite_note(arguments, event) == note


@pytest.mark.parametrize(
    ("host", "maddrs", "says"),
    [
        ("127.0.0.1", ("/ip4/127.0.0.1/tcp/1/p2p/x",), "it looks for no peers of the network"),
        ("[::1]", ("/ip6/::1/tcp/1/p2p/x",), "it looks for no peers of the network"),
        ("any", ("/ip4/127.0.0.1/tcp/1/p2p/x", "/ip6/::1/tcp/1/p2p/x"), "--announce"),
        ("any", ("/ip4/127.0.0.1/tcp/1/p2p/x", "/ip6/2001:db8::1/tcp/1/p2p/x"), ""),
        ("127.0.0.1", ("/dns4/example.org/tcp/1/p2p/x",), ""),
    ],
)
def test_a_node_that_only_its_own_computer_reaches_says_so(
    host: str, maddrs: tuple[str, ...], says: str
) -> None:
    note = reach_note(host, maddrs)
    assert says in note
    assert bool(note) == bool(says)
