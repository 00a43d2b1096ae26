"""Names of KV pages: equal exactly when a hop's pages are, each hop's its own, and as the docstring says."""

from __future__ import annotations

import struct
from dataclasses import replace
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.routing.prefix import HopPlace, PageChain, PrefixKey, check_salt, new_salt, page_names
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.protocol.field_types import MAX_PREFIX_PAGES, PAGE_TOKENS
from swarm_node.swarm.types import Span

SALT, DIGEST = bytes(range(32)), "ab" * 32
HOPS = [HopPlace("A", Span(0, 4), "int4", "int8"), HopPlace("B", Span(4, 6), "bf16", "int8")]
IDS = list(range(5, 5 + 3 * PAGE_TOKENS + 7))

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=4 * PAGE_TOKENS)


def _names(ids: list[int], hop: int = 1, salt: bytes = SALT, digest: str = DIGEST, hops=HOPS):  # type: ignore[no-untyped-def]
    return page_names(PrefixKey(salt, digest), hops)[hop].of(ids)


def test_the_documented_format() -> None:
    def field(text: str) -> bytes:
        return struct.pack("<I", len(text)) + text.encode()

    data = b"".join(map(field, (DIGEST, "A", "0-3", "int4", "int8", "B", "4-5", "int8")))
    key = blake2b(data, key=SALT, person=b"swarm-node kv 1", digest_size=32).digest()
    link = blake2b(key=SALT, person=b"swarm-node text", digest_size=32).digest()
    expected = []
    for page in range(3):
        ids = IDS[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
        link = blake2b(link + b"".join(struct.pack("<I", i) for i in ids), digest_size=32).digest()
        expected.append(blake2b(link, key=key, digest_size=32).digest())
    assert _names(IDS) == tuple(expected)


def test_a_fixed_vector() -> None:
    """For other implementations, and so that a change of the format is noticed."""
    assert [name.hex()[:16] for name in _names(IDS)] == VECTOR


VECTOR = ["e1d02ba8e99b9252", "e5fce2dc503c088b", "eabc9c830f7e5bdc"]


@given(ids=tokens, cut=st.integers(0, 4 * PAGE_TOKENS))
def test_one_digest_a_whole_page_and_grown_as_computed_at_once(ids: list[int], cut: int) -> None:
    chain = PageChain(bytes(32))
    first, whole = chain.digests(ids[:cut]), chain.digests(ids)
    assert len(whole) == len(ids) // PAGE_TOKENS
    assert len(set(whole)) == len(whole)
    assert whole[: len(first)] == first
    assert whole == PageChain(bytes(32)).digests(ids)
    assert chain.digests(ids[:cut]) == first


@given(a=tokens, b=tokens)
def test_pages_are_equal_exactly_where_all_tokens_before_are(a: list[int], b: list[int]) -> None:
    left, right = PageChain(bytes(32)).digests(a), PageChain(bytes(32)).digests(b)
    for page, (x, y) in enumerate(zip(left, right, strict=False)):
        end = (page + 1) * PAGE_TOKENS
        assert (x == y) == (a[:end] == b[:end])


def test_names_are_bounded() -> None:
    ids = [1] * (PAGE_TOKENS * (MAX_PREFIX_PAGES + 3))
    assert len(_names(ids)) == MAX_PREFIX_PAGES


@pytest.mark.parametrize(
    ("hop", "change"),
    [
        (0, {"salt": bytes(32)}),
        (0, {"hops": [replace(HOPS[0], peer_id="C"), HOPS[1]]}),
        (1, {"hops": [replace(HOPS[0], peer_id="C"), HOPS[1]]}),
        (1, {"hops": [HOPS[0], replace(HOPS[1], peer_id="C")]}),
        (0, {"digest": "cd" * 32}),
        (0, {"hops": [replace(HOPS[0], span=Span(0, 3)), HOPS[1]]}),
        (0, {"hops": [replace(HOPS[0], codec="fp16"), HOPS[1]]}),
        (1, {"hops": [replace(HOPS[0], span=Span(0, 3)), HOPS[1]]}),
        (1, {"hops": [replace(HOPS[0], weights="int8"), HOPS[1]]}),
        (1, {"hops": [replace(HOPS[0], codec="fp16"), HOPS[1]]}),
        (1, {"hops": [HOPS[0], replace(HOPS[1], codec="fp16")]}),
        (1, {"hops": [HOPS[0], replace(HOPS[1], span=Span(4, 5))]}),
        (1, {"hops": [replace(HOPS[0], weights="int4int8", codec=""), HOPS[1]]}),
    ],
)
def test_whatever_pages_depend_on_changes_every_name(hop: int, change: dict) -> None:
    assert not set(_names(IDS, hop)) & set(_names(IDS, hop, **change))


@pytest.mark.parametrize(
    "hops",
    [
        [replace(HOPS[0], weights="other"), HOPS[1]],
        [HOPS[0], replace(HOPS[1], peer_id="C", codec="none", span=Span(5, 6))],
        [HOPS[0]],
    ],
)
def test_what_comes_after_the_input_of_a_hop_does_not_matter(hops: list[HopPlace]) -> None:
    """A hop's own weights are its own affair: it knows what its pages were computed with."""
    assert _names(IDS, 0, hops=hops) == _names(IDS, 0)


def test_two_hops_that_do_the_same_are_told_names_of_their_own() -> None:
    """Who answers BUSY has learnt nothing about what is kept elsewhere, nor that it is the same text."""
    same = [HopPlace(peer_id, Span(0, 4), "int4", "int8") for peer_id in "AB"]
    told = [page_names(PrefixKey(SALT, DIGEST), [hop])[0].of(IDS) for hop in same]
    assert not set(told[0]) & set(told[1])


@given(ids=tokens, cut=st.integers(0, 4 * PAGE_TOKENS), more=tokens)
def test_names_of_one_session_grow_and_go_back_together(ids: list[int], cut: int, more: list[int]) -> None:
    names = page_names(PrefixKey(SALT, DIGEST), HOPS)
    assert [each.of(ids) for each in names] == [_names(ids, hop) for hop in range(2)]
    for each in names:
        each.rollback(cut)
    other = ids[:cut] + more
    assert [each.of(other) for each in names] == [_names(other, hop) for hop in range(2)]


def test_salts() -> None:
    assert len({new_salt() for _ in range(10)}) == 10
    assert check_salt(new_salt())
    for salt in (b"", b"short", bytes(65), "a text of more than sixteen"):
        with pytest.raises(UsageError, match="salt"):
            check_salt(salt)  # type: ignore[arg-type]
