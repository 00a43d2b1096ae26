from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.engine.memory.kv_layout import KvGroup, KvLayout
from swarm_node.node.engine.memory.page_allocator import Page, PageAllocator, PrefixKey
from swarm_node.node.engine.memory.prefix_cache import Known, PrefixCache
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.types import Span

SPAN, OTHER = Span(0, 2), Span(2, 4)
WHOLE = KvLayout([0, 0], 512)


def take(cache: PrefixCache, owner: str, span: Span, names: list[bytes]) -> list[Page]:
    """The owner's pages of the longest known beginning of ``names``, each held once more."""
    (pages,) = cache.find(owner, span, WHOLE, names).pages
    assert all(cache._allocator.share(page) for page in pages)
    return pages


def fill(
    allocator: PageAllocator, cache: PrefixCache, chain: list[bytes], span: Span = SPAN, owner: str = "a"
) -> list[Page]:
    """A session that computes what the cache does not know of ``chain``; its pages, held."""
    pages = take(cache, owner, span, chain)
    missing = len(chain) - len(pages)
    assert allocator.reserve(missing * len(span))
    pages += [allocator.allocate(len(span)) for _ in range(missing)]
    for digest, page in zip(chain, pages, strict=True):
        cache.register(Holder(owner), span, WHOLE.groups[0], digest, page)
    return pages


def let_go(allocator: PageAllocator, pages: list[Page]) -> None:
    for page in reversed(pages):
        allocator.release(page)


def test_the_longest_known_beginning_is_held():
    allocator = PageAllocator(100)
    cache = PrefixCache(allocator)
    pages = fill(allocator, cache, [b"a", b"b", b"c"])
    assert take(cache, "a", SPAN, [b"a", b"b", b"x", b"c"]) == pages[:2]
    assert [page.holders for page in pages] == [2, 2, 1]
    assert take(cache, "a", SPAN, [b"b"]) == pages[1:2]  # a name is all that counts
    assert take(cache, "a", SPAN, []) == take(cache, "a", SPAN, [b"x", b"a"]) == []


def test_another_span_is_another_page():
    allocator = PageAllocator(100)
    cache = PrefixCache(allocator)
    fill(allocator, cache, [b"a"])
    assert take(cache, "a", OTHER, [b"a"]) == []
    assert take(cache, "a", Span(0, 1), [b"a"]) == []


def test_pages_outlive_their_session_until_their_slots_are_needed():
    allocator = PageAllocator(8)
    cache = PrefixCache(allocator)
    let_go(allocator, fill(allocator, cache, [b"a", b"b", b"c"]))
    assert (allocator.free, allocator.cached, len(cache)) == (2, 6, 3)
    assert allocator.reserve(4)
    assert allocator.cached == 6  # a promise alone costs nothing
    allocator.allocate(2)
    allocator.allocate(2)
    assert (allocator.free, allocator.cached, len(cache)) == (0, 4, 2)
    assert len(take(cache, "a", SPAN, [b"a", b"b", b"c"])) == 2  # the end went first


def test_a_held_page_cannot_be_evicted():
    allocator = PageAllocator(4)
    cache = PrefixCache(allocator)
    fill(allocator, cache, [b"a", b"b"])
    assert not allocator.reserve(1)
    assert len(cache) == 2


def test_one_page_a_name_and_one_name_a_page():
    allocator = PageAllocator(8)
    cache = PrefixCache(allocator)
    first = fill(allocator, cache, [b"a"])[0]
    assert allocator.reserve(2)
    second = allocator.allocate(2)
    assert not cache.register(Holder("a"), SPAN, WHOLE.groups[0], b"a", second)
    assert not cache.register(Holder("a"), SPAN, WHOLE.groups[0], b"b", first)
    assert cache.register(Holder("a"), SPAN, WHOLE.groups[0], b"b", second)
    cache.unregister(first)
    assert take(cache, "a", SPAN, [b"a"]) == []
    assert (len(cache), allocator.cached, first.holders) == (1, 0, 1)
    allocator.release(first)
    assert allocator.cached == 0


@given(chains=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=30))
def test_a_chain_loses_its_end_before_its_beginning(chains):
    """Conversations that branch, in a pool that holds few of them: no page is kept that cannot be reached."""
    allocator = PageAllocator(14)
    cache = PrefixCache(allocator)
    known: set[tuple[int, ...]] = set()
    for path in chains:
        names = [bytes(path[: i + 1]) for i in range(len(path))]
        let_go(allocator, fill(allocator, cache, names))
        known |= {tuple(name) for name in names}
        known = {name for name in known if PrefixKey("a", 0, 2, False, 0, bytes(name)) in cache._pages}
        assert all(len(name) == 1 or name[:-1] in known for name in known)
        assert tuple(path) in known
        assert len(cache) == len(known) <= 7


sessions = st.lists(
    st.tuples(
        st.sampled_from("abc"),  # who
        st.lists(st.integers(0, 2), min_size=1, max_size=4),  # the names that its pages get
        st.sampled_from([SPAN, OTHER]),
    ),
    max_size=30,
)


@given(sessions=sessions, slots=st.integers(8, 40))
def test_nobody_finds_a_page_that_another_filled(sessions, slots):
    """Three peers give their pages the same names, in a pool that cannot keep all of them."""
    allocator = PageAllocator(slots)
    cache = PrefixCache(allocator)
    filled: dict[int, tuple[str, Span, bytes]] = {}  # by page: whose, and what for
    for owner, path, span in sessions:
        names = [bytes(path[: i + 1]) for i in range(len(path))]
        found = take(cache, owner, span, names)
        assert all(filled[id(page)] == (owner, span, name) for page, name in zip(found, names, strict=False))
        for page in found:
            allocator.release(page)
        pages = fill(allocator, cache, names, span, owner)
        filled |= {id(page): (owner, span, name) for page, name in zip(pages, names, strict=True)}
        let_go(allocator, pages)


def test_who_leaves_most_loses_first():
    allocator = PageAllocator(10)
    cache = PrefixCache(allocator)
    let_go(allocator, fill(allocator, cache, [b"a", b"b"], owner="rests"))
    for number in range(20):
        let_go(allocator, fill(allocator, cache, [bytes([number])], owner="greedy"))
    assert len(take(cache, "rests", SPAN, [b"a", b"b"])) == 2
    assert len(cache) == 5


def test_a_beginning_is_known_where_every_block_has_what_the_next_token_sees():
    allocator = PageAllocator(100)
    cache = PrefixCache(allocator)
    layout = KvLayout([0, 6, 0], 4, page_tokens=4)
    whole, window = layout.groups
    names = [bytes([number]) for number in range(8)]

    def name(group: KvGroup, *numbers: int, long_context: bool = False) -> list[Page]:
        assert allocator.reserve(len(numbers) * group.blocks)
        pages = [allocator.allocate(group.blocks) for _ in numbers]
        for number, page in zip(numbers, pages, strict=True):
            cache.register(Holder("a"), SPAN, group, names[number], page, long_context=long_context)
        return pages

    def find(count: int = 8, *, long_context: bool = False) -> Known:
        return cache.find("a", SPAN, layout, names[:count], long_context=long_context)

    pages = name(whole, *range(7))
    assert find() == Known(0, ([], []))
    seen = name(window, 0, 3, 4, 6)
    # Token 28 sees pages 5 and 6 of which one is missing, token 20 sees 3 and 4.
    assert find() == find(6) == Known(5, (pages[:5], seen[1:3]))
    assert find(4) == find(1) == Known(1, (pages[:1], seen[:1]))
    assert find(long_context=True).count == 0
    longer = name(whole, 0, long_context=True) + name(window, 0, long_context=True)
    assert find(long_context=True) == Known(1, (longer[:1], longer[1:]))
