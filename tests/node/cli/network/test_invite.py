"""``swarm-node invite``: what it prints, and whose addresses it chooses."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from swarm_node.node.cli.main import main
from swarm_node.node.cli.network.invite import MOST_MADDRS, MOST_PEERS, REACHES, choose_addresses, reach
from swarm_node.node.cli.network.options import duration
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.entry import swarm_entry
from swarm_node.swarm.membership.invite import Invite
from swarm_node.swarm.transport.addresses import PeerAddress
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("toy", "ab" * 32, 8)
PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 8)]


def node(number: int, *maddrs: str, state: NodeState = NodeState.ONLINE) -> NodeInfo:
    peer_id = PEERS[number]
    return NodeInfo(peer_id, tuple(f"{maddr}/p2p/{peer_id}" for maddr in maddrs), MODEL, Span(0, 8), state)


def invite(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["invite", "--json", "--no-mdns", *words]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_the_first_invite_makes_the_key_and_later_ones_use_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "home.key"
    words = ("--swarm", "home", "--swarm-key", str(key))
    first, second = (invite(capsys, *words, "--lasts", "2h") for _ in range(2))
    assert (first["made_key"], second["made_key"]) == (True, False)
    assert key.stat().st_mode & 0o777 == 0o600
    assert first["invite"] != second["invite"]  # a key of its own each
    assert first["secret"]
    assert abs(first["ends"] - time.time() - 7200) < 60
    tags = {swarm_entry(join=made["invite"]).tag for made in (first, second)}
    assert tags == {swarm_entry(swarm="home", swarm_key=key).tag}


def test_people_get_the_invite_alone_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["invite", "--no-mdns", "--swarm", "den", "--swarm-key", str(tmp_path / "k"), "--lasts", "ever"])
        == 0
    )
    printed = capsys.readouterr()
    assert Invite.parse(printed.out).name == "den"
    assert math.isinf(Invite.parse(printed.out).ends)
    assert "for ever" in printed.err
    assert "secret" in printed.err


def test_who_was_invited_passes_its_invite_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = invite(capsys, "--swarm-key", str(tmp_path / "k"))
    again = invite(capsys, "--join", first["invite"])
    assert Invite.parse(again["invite"]) == Invite.parse(first["invite"])


def test_without_a_key_it_is_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    made = invite(capsys, "--swarm", "den")
    assert (made["secret"], made["ends"], made["swarm"]) == (False, None, "den")


def test_addresses_are_those_given_then_of_serving_nodes_on_other_machines() -> None:
    given = [PeerAddress(PEERS[6], "/dns4/home.example/tcp/31330")]
    nodes = [
        node(
            0, "/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.5/tcp/1", "/ip4/10.0.0.5/tcp/1", "/ip4/10.0.0.6/tcp/1"
        ),
        node(1, "/ip4/192.168.1.6/tcp/1", state=NodeState.DRAINING),
        node(2, "/ip4/127.0.0.1/tcp/2"),
        *(node(number, f"/ip4/192.168.1.{number}/tcp/1") for number in (3, 4, 5)),
    ]
    chosen = choose_addresses(given, nodes)
    assert chosen[0] == given[0]
    assert [peer.maddr for peer in chosen if peer.peer_id == PEERS[0]] == [
        "/ip4/192.168.1.5/tcp/1",
        "/ip4/10.0.0.5/tcp/1",
    ]
    assert PeerAddress(PEERS[2], "/ip4/127.0.0.1/tcp/2") in chosen  # better than none: all on one machine
    assert len({peer.peer_id for peer in chosen}) == MOST_PEERS
    assert len(chosen) <= MOST_PEERS * MOST_MADDRS


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("12h", 43200), ("30d", 2_592_000), ("8w", 4_838_400), ("ever", math.inf)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0d", "d", "1", "-1d", "1y", "1.5h", "999999d", "forever"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 12h"):
        duration(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "--join", "swn1AJuX", "--no-mdns"), "cut off"),
        (("generate", "--model", "x", "--join", "hello", "hi"), "is neither an invite nor a file with one"),
        (("serve", "--model", "x", "--swarm-key", "/nonexistent/k"), "no swarm key at /nonexistent/k"),
        (("status", "--no-mdns"), "no address of the swarm is given"),
        (("chat", "--model", "x", "--swarm", "a\nb"), "cannot be the name of a swarm"),
    ],
)
def test_errors_are_two_lines_that_say_what_to_do(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 2
    assert message in printed[0]


def test_an_invite_that_is_passed_on_cannot_be_given_another_end(capsys: pytest.CaptureFixture[str]) -> None:
    given = invite(capsys, "--swarm", "den")["invite"]
    assert main(["invite", "--no-mdns", "--join", given, "--lasts", "60d"]) == 2
    assert "Leave --lasts out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("maddrs", "by_mdns", "where"),
    [
        (["/ip4/192.168.1.5/tcp/1", "/ip4/8.8.8.8/tcp/1"], True, "anywhere"),
        (["/dns4/home.example/tcp/1"], False, "anywhere"),
        ([f"/ip4/8.8.8.8/tcp/1/p2p/{PEERS[1]}/p2p-circuit"], False, "anywhere"),
        (["/ip4/192.168.1.5/tcp/1", "/ip4/127.0.0.1/tcp/1"], True, "network"),
        (["/ip4/100.64.0.5/tcp/1"], False, "network"),
        (["/ip4/127.0.0.1/tcp/1"], False, "computer"),
        ([], True, "mdns"),
        ([], False, "nowhere"),
    ],
)
def test_from_where_it_leads_in(maddrs: list[str], by_mdns: bool, where: str) -> None:
    assert reach([PeerAddress(PEERS[0], maddr) for maddr in maddrs], by_mdns=by_mdns) == where
    assert where in REACHES


def test_an_invite_without_an_address_says_that_it_leads_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invite(capsys, "--swarm-key", str(tmp_path / "k"))["reach"] == "nowhere"
    assert main(["invite", "--no-mdns", "--swarm", "den"]) == 0
    assert "no address: it leads nobody in. Give --initial-peers" in " ".join(capsys.readouterr().err.split())


def test_a_node_behind_a_relay_is_named_by_its_circuit_and_for_its_own_network() -> None:
    circuit = f"/ip4/9.9.9.9/tcp/2/p2p/{PEERS[1]}/p2p-circuit"
    there = node(0, "/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.5/tcp/1", "/ip4/192.168.1.6/tcp/1", circuit)
    assert [peer.maddr for peer in choose_addresses([], [there])] == [circuit, "/ip4/192.168.1.5/tcp/1"]
