"""Journals against a plain model: lists of rows, and the rule which go first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.sessions.journal import Journal, JournalBook
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span

SPAN = Span(0, 4)


def row(seed: int, size: int) -> bytes:
    return bytes((seed * 31 + i) % 251 for i in range(size))


def rows(seeds: list[int], size: int) -> bytes:
    return b"".join(row(seed, size) for seed in seeds)


def test_rows_come_back_as_they_went_in():
    journal = JournalBook(1000).open(4, 0)
    journal.write(0, b"aaaabbbb")
    journal.write(2, memoryview(b"cccc"))
    assert (journal.base, journal.end, len(journal)) == (0, 3, 12)
    assert journal.slice(0, 3) == b"aaaabbbbcccc"
    assert journal.slice(1, 2) == b"bbbb"
    assert journal.slice(3, 3) == b""
    assert journal.slice(2, 4) is None


def test_a_lower_position_cuts():
    book = JournalBook(1000)
    journal = book.open(2, 5)
    journal.write(5, b"aabbcc")
    journal.write(6, b"dd")
    assert (journal.slice(5, 7), journal.slice(7, 8)) == (b"aadd", None)
    journal.write(3, b"ee")  # what a known prefix held is fed again
    assert (journal.base, journal.end, journal.slice(3, 4)) == (3, 4, b"ee")
    assert book.statistics().used == 2


def test_what_cannot_be():
    book = JournalBook(1000)
    journal = book.open(4, 0)
    with pytest.raises(LocalProtocolError, match="are not whole rows"):
        journal.write(0, b"aaa")
    with pytest.raises(LocalProtocolError, match="a hole"):
        journal.write(1, b"aaaa")
    with pytest.raises(LocalProtocolError):
        book.open(0, 0)
    assert book.statistics().used == 0


def test_the_journal_written_to_the_longest_ago_goes_whole():
    book = JournalBook(10)
    first, second, third = (book.open(1, 0) for _ in range(3))
    first.write(0, b"aaaa")
    second.write(0, b"bbbb")
    first.write(4, b"a")
    third.write(0, b"cc")
    assert (first.lost, second.lost, third.lost) == (False, True, False)
    assert book.statistics().used == 7
    second.write(0, b"bb")  # it stays lost
    assert second.slice(0, 1) is None
    assert not second.holds(0)
    assert (book.statistics().lost, book.statistics().sessions) == (1, 2)


def test_who_has_most_loses_first():
    """One client with many long sessions does not cost another, who rests, its only journal."""
    book = JournalBook(100)
    rests = book.open(1, 0, bytes(30), owner="rests")
    greedy = [book.open(1, 0, bytes(20), owner="greedy") for _ in range(6)]
    assert [journal.lost for journal in greedy] == [True, True, True, False, False, False]
    assert not rests.lost
    assert rests.slice(0, 30) == bytes(30)
    assert book.statistics().used == 90
    rests.write(30, bytes(35))  # now it has most
    assert rests.lost
    assert [journal.lost for journal in greedy[3:]] == [False] * 3


def test_a_crowd_of_one_network_costs_nobody_elsewhere_a_journal():
    book = JournalBook(100)
    mine = book.open(1, 0, bytes(40), owner="me", group="home")
    crowd = [book.open(1, 0, bytes(10), owner=f"sybil{number}", group="net") for number in range(20)]
    assert not mine.lost
    assert sum(not journal.lost for journal in crowd) == 6
    for journal in (mine, *crowd):
        journal.close()
    assert book.statistics().used == 0


def test_a_session_larger_than_the_budget_loses_its_own():
    book = JournalBook(10)
    journal = book.open(1, 0)
    journal.write(0, bytes(8))
    journal.write(8, bytes(3))
    assert journal.lost
    assert book.statistics().used == 0


def test_finished_pages_are_found_by_those_that_begin_alike_and_go_first():
    size = 3
    book = JournalBook(5 * PAGE_TOKENS * size)
    done = rows(list(range(PAGE_TOKENS * 2 + 5)), size)
    journal = book.open(size, 0)
    journal.write(0, done)
    hashes = [bytes([i]) * 32 for i in range(3)]
    book.finish(journal, SPAN, "int8", hashes)
    page = PAGE_TOKENS * size
    assert (book.statistics().pages, book.statistics().used) == (2, 2 * page)
    assert book.recall("", SPAN, "int8", hashes[:2]) == (0, done[: 2 * page])
    assert book.recall("", SPAN, "int8", hashes[1:2]) == (0, done[page : 2 * page])
    assert book.recall("", SPAN, "int8", hashes) == (3 * PAGE_TOKENS, b"")  # its last page is not there
    assert book.recall("", SPAN, "bf16", hashes[:2]) == (2 * PAGE_TOKENS, b"")
    assert book.recall("", Span(0, 3), "int8", hashes[:1]) == (PAGE_TOKENS, b"")
    other = book.open(size, 0)
    other.write(0, bytes(4 * page))  # room for one page
    assert (book.statistics().pages, other.lost) == (1, False)
    assert book.recall("", SPAN, "int8", hashes[1:2]) == (0, done[page : 2 * page])
    other.write(0, bytes(5 * page))
    assert (book.statistics().pages, other.lost) == (0, False)


def test_what_a_session_left_is_its_own_peers():
    book = JournalBook(10**6)
    names = [b"a", b"b"]
    for owner, seed in (("one", 1), ("other", 2)):
        journal = book.open(1, 0, bytes([seed]) * 2 * PAGE_TOKENS, owner=owner)
        book.finish(journal, SPAN, "int8", names)
    for owner, seed in (("one", 1), ("other", 2)):
        assert book.recall(owner, SPAN, "int8", names) == (0, bytes([seed]) * 2 * PAGE_TOKENS)
    assert book.recall("third", SPAN, "int8", names) == (2 * PAGE_TOKENS, b"")


def test_a_name_that_is_given_twice_is_counted_once():
    book = JournalBook(3 * PAGE_TOKENS)
    for _ in range(3):
        book.finish(book.open(1, 0, bytes(2 * PAGE_TOKENS)), SPAN, "int8", [b"a", b"a"])
    assert (book.statistics().pages, book.statistics().used) == (1, PAGE_TOKENS)
    assert book.recall("", SPAN, "int8", [b"a"]) == (0, bytes(PAGE_TOKENS))


def test_rows_kept_of_others_outlast_those_of_who_has_most():
    book = JournalBook(4 * PAGE_TOKENS)
    book.finish(book.open(1, 0, bytes(PAGE_TOKENS), owner="rests"), SPAN, "int8", [b"a"])
    for name in (b"b", b"c", b"d", b"e"):
        book.finish(book.open(1, 0, bytes(PAGE_TOKENS), owner="greedy"), SPAN, "int8", [name])
    kept = [bool(book.recall("greedy", SPAN, "int8", [name])[1]) for name in (b"b", b"c", b"d", b"e")]
    assert kept == [False, True, True, True]
    assert book.recall("rests", SPAN, "int8", [b"a"])[1]


class Model:
    """What a journal should hold."""

    def __init__(self, journal: Journal, size: int, base: int) -> None:
        self.journal, self.size, self.base = journal, size, base
        self.rows: list[int] = []
        self.lost = False

    @property
    def bytes(self) -> int:
        return self.size * len(self.rows)

    def check(self) -> None:
        assert self.journal.lost == self.lost
        if self.lost:
            assert self.journal.slice(self.base, self.base) is None
            return
        end = self.base + len(self.rows)
        assert (self.journal.base, self.journal.end) == (self.base, end)
        assert self.journal.slice(self.base, end) == rows(self.rows, self.size)
        assert self.journal.slice(self.base, end + 1) is None
        assert not self.rows or self.journal.slice(self.base + 1, end) == rows(self.rows[1:], self.size)


moves = st.lists(
    st.tuples(
        st.sampled_from(["open", "write", "write", "write", "rollback", "finish", "recall"]),
        st.integers(0, 7),  # which
        st.integers(0, 40),  # rows, or how far back
        st.integers(0, 10**6),
    ),
    max_size=60,
)


@given(budget=st.integers(0, 2000), moves=moves)
def test_any_schedule_keeps_to_the_budget_and_to_the_rows(budget, moves):
    book = JournalBook(budget)
    models: list[Model] = []  # least recently written first
    pages: list[tuple[bytes, int, bytes]] = []  # digest, size, rows; least recently used first
    lost = 0

    def used() -> int:
        return sum(model.bytes for model in models) + sum(len(page[2]) for page in pages)

    def shrink() -> None:
        nonlocal lost
        while used() > budget:
            if pages:
                del pages[0]
            else:
                oldest = next(model for model in models if model.bytes)
                oldest.lost, oldest.rows = True, []
                lost += 1

    for move, which, count, seed in moves:
        size = 1 + seed % 5
        if move == "open" or not models:
            models.append(Model(book.open(size, count), size, count))
            continue
        model = models[which % len(models)]
        if move == "write":
            at = max(0, model.base + len(model.rows) - count // 4)
            seeds = [seed + i for i in range(count)]
            model.journal.write(at, rows(seeds, model.size))
            if not model.lost:
                kept = max(0, at - model.base)
                model.base = min(model.base, at)
                model.rows = model.rows[:kept] + seeds
                if count:
                    models.remove(model)
                    models.append(model)
                shrink()
        elif move == "rollback":
            model.journal.rollback(count)
            if not model.lost:
                model.rows = model.rows[: max(0, count - model.base)]
            model.base = min(model.base, count)
        elif move == "finish":
            digests = [bytes([model.size, seed % 3, i]) for i in range(which % 3)]
            book.finish(model.journal, SPAN, str(model.size), digests)
            models.remove(model)
            new = []
            for i, digest in enumerate(digests):
                known = [page for page in pages if page[0] == digest]
                first = i * PAGE_TOKENS - model.base
                if not known and not model.lost and first >= 0 and first + PAGE_TOKENS <= len(model.rows):
                    cut = model.rows[first : first + PAGE_TOKENS]
                    new.append((digest, model.size, rows(cut, model.size)))
                elif known:
                    pages.remove(known[0])
                    pages.insert(len(pages), known[0])
            pages += new
            shrink()
            model.journal.close()
            assert len(model.journal) == 0
        else:
            digests = [bytes([model.size, seed % 3, i]) for i in range(which % 3)]
            found = []
            for digest in reversed(digests):
                known = [page for page in pages if page[0] == digest]
                if not known:
                    break
                pages.remove(known[0])
                pages.append(known[0])
                found.insert(0, known[0][2])
            base = (len(digests) - len(found)) * PAGE_TOKENS
            assert book.recall("", SPAN, str(model.size), digests) == (base, b"".join(found))
        for each in models:
            each.check()
        statistics = book.statistics()
        assert statistics.used == used() <= budget
        assert (statistics.pages, statistics.lost) == (len(pages), lost)
        assert statistics.sessions == sum(1 for each in models if each.bytes)
