"""Peers that answered before: bounded, shared by processes, and never a reason not to start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm_node.dht.address_book import MAX_BOOKS, MAX_PEERS, AddressBook, book_path
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.identity import Identity
from tests.doubles.clock import Clock

NOW = 1_700_000_000.0


def peer(number: int) -> str:
    return Identity(number.to_bytes(32)).peer_id


def place(number: int, group: int = 0) -> str:
    return f"/ip4/20.{group}.0.{number % 250}/tcp/4001"


def test_what_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    path, clock = tmp_path / "peers" / "book.json", Clock(NOW)
    book = AddressBook(path, clock)
    book.answered(peer(1), [f"{place(1)}/p2p/{peer(1)}"])
    clock.now += 5
    book.answered(peer(1), [place(2)])
    book.answered(peer(2), [])  # where it is is not known
    book.answered("nobody", [place(3)])
    book.answered(peer(3), ["no address"])
    book.save()
    (known,) = AddressBook(path, clock).peers()
    assert (known.peer_id, known.maddrs, known.first, known.last) == (peer(1), (place(2),), NOW, NOW + 5)
    assert not list(path.parent.glob("*.tmp"))
    clock.now += 31 * 86_400
    assert len(AddressBook(path, clock)) == 0


def test_processes_that_share_a_book_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    one, other = AddressBook(path, Clock(NOW)), AddressBook(path, Clock(NOW))
    one.answered(peer(1), [place(1)])
    other.answered(peer(2), [place(2)])
    one.save()
    other.save()
    assert {known.peer_id for known in AddressBook(path, Clock(NOW)).peers()} == {peer(1), peer(2)}


def test_a_flood_from_one_network_displaces_only_itself() -> None:
    clock = Clock(NOW)
    book = AddressBook(clock=clock)
    for number in range(20):
        book.answered(peer(number), [place(number, group=number + 1)])
    for number in range(100, 400):
        clock.now += 1
        book.answered(peer(number), [place(number)])
    assert len(book) == MAX_PEERS
    assert {peer(number) for number in range(20)} <= {known.peer_id for known in book.peers()}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        json.dumps({"version": 2, "peers": []}),
        json.dumps({"version": 1, "peers": {}}),
        "\udc80".encode(errors="surrogateescape"),
        b"0" * 300_000,
    ],
)
def test_a_damaged_book_is_put_aside(
    content: str | bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "book.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    book = AddressBook(path, Clock(NOW))
    assert len(book) == 0
    assert "event=address_book_unreadable" in caplog.text
    assert path.with_name(f"{path.name}.bad").exists()
    book.answered(peer(1), [place(1)])
    book.save()
    assert len(AddressBook(path, Clock(NOW))) == 1


def test_peers_out_of_bounds_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    good = {"peer_id": peer(1), "maddrs": [place(1)], "first": NOW, "last": NOW}
    bad: list[object] = [
        *({**good, "peer_id": peer(2), key: value} for key, value in [("first", "now"), ("maddrs", [])]),
        *({**good, "peer_id": peer(2), "maddrs": maddrs} for maddrs in ([1], ["/x" * 999], "abc", [[]])),
        {**good, "peer_id": "x"},
        {**good, "peer_id": peer(2), "last": float("nan")},
        7,
        None,
    ]
    path.write_text(json.dumps({"version": 1, "peers": [*bad, good]}))
    assert [known.peer_id for known in AddressBook(path, Clock(NOW)).peers()] == [peer(1)]


def test_a_disk_that_cannot_be_written_is_only_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    book = AddressBook(tmp_path / "file" / "book.json", Clock(NOW))
    book.answered(peer(1), [place(1)])
    book.save()
    assert "event=address_book_unwritable" in caplog.text
    assert len(book) == 1


def test_a_book_belongs_to_one_way_into_a_swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    first, second = (f"{place(n)}/p2p/{peer(n)}" for n in (1, 2))
    paths = [
        book_path("", [first]),
        book_path("", [second]),
        book_path("tag", [first]),
        book_path("", [], peer(1)),
        book_path("", [], peer(2)),
    ]
    assert len(set(paths)) == len(paths)
    assert book_path("", [first, second]) == book_path("", [second, first])
    assert book_path("", [first.replace("4001", "4002")], peer(9)) == paths[0]  # it may have moved
    with pytest.raises(UsageError):
        book_path("", ["nonsense"])
    for number in range(MAX_BOOKS + 4):
        book = AddressBook(book_path(str(number), [first]), Clock(NOW))
        book.answered(peer(1), [place(1)])
        book.save()
    assert len(list(paths[0].parent.glob("*.json"))) == MAX_BOOKS
