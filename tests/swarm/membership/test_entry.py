"""What the options that say where a swarm is mean together."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.entry import SwarmEntry, swarm_entry
from swarm_node.swarm.membership.invite import make_invite
from swarm_node.swarm.membership.membership import KeyedSwarm, NamedSwarm
from swarm_node.swarm.transport.addresses import PeerAddress

NOW = 1_800_000_000.0
PEER = PeerAddress(Identity(b"p" * 32).peer_id, "/ip4/192.168.1.5/tcp/31330")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "home.key"
    Identity.load_or_create(path)
    return path


def test_nothing_said_is_the_unnamed_swarm_of_this_lan() -> None:
    entry = swarm_entry()
    assert entry == SwarmEntry()
    assert entry.tag == ""
    assert not entry.is_alone
    assert swarm_entry(mdns=False).is_alone
    assert not swarm_entry([str(PEER)], mdns=False).is_alone


def test_one_address_may_be_given_as_it_is() -> None:
    assert swarm_entry(str(PEER)).initial_peers == (str(PEER),)


def test_a_name_and_a_key_make_different_swarms(key: Path) -> None:
    named, keyed, unnamed = (
        swarm_entry(swarm="home"),
        swarm_entry(swarm="home", swarm_key=key),
        swarm_entry(swarm_key=key),
    )
    assert isinstance(named.membership, NamedSwarm)
    assert isinstance(keyed.membership, KeyedSwarm)
    assert keyed.membership.holder is not None
    assert len({named.tag, keyed.tag, unnamed.tag}) == 3


def test_an_invite_says_all(key: Path) -> None:
    holder = swarm_entry(swarm="home", swarm_key=key)
    text = str(make_invite("home", Identity.load(key), [PEER], NOW, 3600))
    for words in ({"join": text}, {"join": text, "swarm": "home"}):
        entry = swarm_entry(now=NOW, **words)
        assert entry.tag == holder.tag
        assert (entry.initial_peers, entry.may_meet) == ((), (str(PEER),))
        assert isinstance(entry.membership, KeyedSwarm)
        assert entry.membership.holder is None


def test_an_invite_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "invite.txt"
    file.write_text(f"\n{make_invite('den', None, [PEER], NOW)}\n")
    assert swarm_entry(join=str(file)).tag == NamedSwarm("den").tag
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read an invite"):
        swarm_entry(join=str(tmp_path / "binary"))
    with pytest.raises(UsageError, match="is neither an invite nor a file with one"):
        swarm_entry(join=str(tmp_path / "missing"))


def test_contradictions_are_refused(key: Path) -> None:
    text = str(make_invite("home", Identity.load(key), [], time.time()))
    with pytest.raises(UsageError, match="two ways into a swarm"):
        swarm_entry(join=text, swarm_key=key)
    with pytest.raises(UsageError, match="for swarm 'home', not 'den'"):
        swarm_entry(join=text, swarm="den")


def test_an_invite_that_is_over_is_refused_at_once(key: Path) -> None:
    text = str(make_invite("home", Identity.load(key), [], NOW, 60))
    with pytest.raises(UsageError, match="the invite ended on") as caught:
        swarm_entry(join=text, now=NOW + 3600)
    assert "new one" in caught.value.hint
    with pytest.raises(UsageError, match=r"begins on .* but the clock here says"):
        swarm_entry(join=text, now=NOW - 3600)


def test_a_missing_or_damaged_key_is_named(tmp_path: Path, key: Path) -> None:
    with pytest.raises(UsageError, match="no swarm key at") as caught:
        swarm_entry(swarm_key=tmp_path / "typo.key")
    assert "swarm-node invite --swarm-key" in caught.value.hint
    assert not (tmp_path / "typo.key").exists()  # a new key would be another swarm
    key.write_bytes(key.read_bytes()[:-1])
    with pytest.raises(UsageError, match="damaged"):
        swarm_entry(swarm_key=key)


def test_a_key_that_others_can_read_is_shut(key: Path) -> None:
    key.chmod(0o644)
    swarm_entry(swarm_key=key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
