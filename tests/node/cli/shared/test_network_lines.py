"""How a node tells where it is and how to join it."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared.network_lines import (
    invite_note,
    join_command,
    lan_note,
    outside_note,
    print_join,
    reach_note,
)
from swarm_node.node.config import NodeEvent


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ((), "swarm-node serve --model m"),
        (("--blocks", "15-29"), "swarm-node serve --model m"),  # others may serve 0-14 already
        (("--swarm", "my den"), "swarm-node serve --model m --swarm 'my den'"),
        (("--no-mdns",), "swarm-node serve --model m --initial-peers /ip4/192.168.1.5/tcp/1/p2p/x --no-mdns"),
        (
            ("--host", "127.0.0.1"),
            "swarm-node serve --model m --initial-peers /ip4/192.168.1.5/tcp/1/p2p/x --host 127.0.0.1",
        ),
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
        ((), ""),
        (("--no-mdns",), ""),
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


LAN, PUBLIC = "/ip4/192.168.1.5/tcp/1/p2p/x", "/ip4/8.8.8.8/tcp/1/p2p/x"
CIRCUIT = "/ip4/9.9.9.9/tcp/2/p2p/r/p2p-circuit/p2p/x"


@pytest.mark.parametrize(
    ("words", "maddrs", "says"),
    [
        ((), (LAN,), "Other networks do not reach it"),
        ((), ("/ip4/100.64.0.9/tcp/1/p2p/x",), "Other networks do not reach it"),
        (
            (),
            (LAN, PUBLIC),
            f"if no firewall is before it: swarm-node serve --model m --initial-peers {PUBLIC}",
        ),
        (
            (),
            (LAN, PUBLIC, CIRCUIT),
            f"through its relay: swarm-node serve --model m --initial-peers {CIRCUIT}",
        ),
        ((), ("/dns4/example.org/tcp/1/p2p/x",), "--initial-peers /dns4/example.org/tcp/1/p2p/x"),
        (("--swarm-key", "k"), (LAN, CIRCUIT), "Other networks reach it through its relay."),
        (("--host", "127.0.0.1"), (LAN,), ""),
        ((), ("/ip4/127.0.0.1/tcp/1/p2p/x",), ""),
    ],
)
def test_what_is_known_of_other_networks(words: tuple[str, ...], maddrs: tuple[str, ...], says: str) -> None:
    arguments = build_parser().parse_args(["serve", "--model", "m", *words])
    note = outside_note(arguments, NodeEvent("online", maddrs=maddrs), "m")
    assert says in note
    assert bool(says) == bool(note)


@pytest.mark.parametrize(
    ("words", "hosts", "says"),
    [
        ((), ("192.168.1.5", "8.8.8.8"), ""),
        ((), ("100.64.0.9",), "Nobody on this network finds it by mDNS"),
        ((), ("8.8.8.8", "2001:db8::1"), "Nobody on this network finds it by mDNS"),
        ((), ("100.64.0.9", "fd00::1"), "over IPv6 alone: 100.64.0.9 is no private address"),
        ((), ("fd00::1",), ""),
        (("--no-mdns",), ("8.8.8.8",), ""),
        (("--host", "127.0.0.1"), ("127.0.0.1",), ""),
    ],
)
def test_what_mdns_cannot_tell_is_said(words: tuple[str, ...], hosts: tuple[str, ...], says: str) -> None:
    arguments = build_parser().parse_args(["serve", "--model", "m", *words])
    maddrs = tuple(f"/ip{6 if ':' in host else 4}/{host}/tcp/1/p2p/x" for host in hosts)
    note = lan_note(arguments, maddrs)
    assert says in note
    assert bool(says) == bool(note)


@pytest.mark.parametrize(("shares", "host"), [(True, "any"), (False, "any"), (False, "127.0.0.1")])
def test_a_path_of_this_machine_is_not_told_to_others(
    shares: bool, host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.gguf"
    file.touch()
    arguments = build_parser().parse_args(["serve", "--model", str(file), "--host", host])
    print_join(arguments, NodeEvent("online", maddrs=(LAN,), model="tiny"), str(file), shares=shares)
    told = " ".join(capsys.readouterr().err.split())
    assert (f"--model {file}" in told) == (host != "any")
    assert ("--model tiny" in told) == (host == "any")
    assert ("does not share them" in told) == (not shares and host == "any")


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
