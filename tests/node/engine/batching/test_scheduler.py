from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.node.engine.batching.cohorts import DECODE_LINGERS_NS
from swarm_node.node.engine.batching.guesses import PATIENCE_NS, SHARE
from swarm_node.node.engine.batching.prefill_pace import FIRST_SLICE, MIN_SLICE
from swarm_node.node.engine.batching.row_time import RowTime
from swarm_node.node.engine.batching.scheduler import DECODE_TOKENS, Batch, Certain, Scheduler, Slice
from swarm_node.swarm.errors import LocalProtocolError, UsageError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS

KEYS = [f"{owner}{number}" for owner in "abc" for number in range(4)]
sizes = st.one_of(st.integers(1, DECODE_TOKENS), st.integers(1, 700))
again = st.one_of(st.just(0), st.integers(0, PAGE_TOKENS - 1))
certain = st.sampled_from(Certain)
steps = st.lists(st.tuples(st.sampled_from(KEYS), sizes, st.integers(0, 40), again, certain), max_size=30)


class Model:
    """What a scheduler must have done, kept the slow way."""

    def __init__(self, max_tokens: int, max_sessions: int, mixed: bool) -> None:
        self.scheduler: Scheduler[str] = Scheduler(max_tokens, max_sessions=max_sessions, mixed=mixed)
        self.mixed = mixed
        self.passed_over = ""  # what waited while the last batch was all of the other kind
        self.max_tokens, self.max_sessions = max_tokens, max_sessions
        self.waiting: dict[str, list[tuple[int, int, int, Certain]]] = {}
        self.progress: dict[str, int] = {}
        self.now = 1

    def add(self, key: str, tokens: int, deadline: int, again: int, certain: Certain) -> None:
        self.scheduler.add(key, key[0], tokens, deadline, again=again, certain=certain)
        self.waiting.setdefault(key, []).append((tokens, deadline, again, certain))

    def pop(self, key: str) -> None:
        self.progress.pop(key, None)
        self.waiting[key].pop(0)
        if not self.waiting[key]:
            del self.waiting[key]

    def run_one(self) -> list[Slice[str]]:
        self.now += 1
        before = {key: (queue[0][0], self.progress.get(key, 0)) for key, queue in self.waiting.items()}
        batch = self.scheduler.next_batch(self.now)
        keys = [part.key for part in batch.slices]
        assert bool(keys or batch.expired) is bool(before)
        assert len(set(keys + batch.expired)) == len(keys) + len(batch.expired)
        assert len(keys) <= max(self.max_sessions, 2)
        assert sum(part.count for part in batch.slices) <= self.max_tokens
        fed_again = sum(self.waiting[part.key][0][2] for part in batch.slices if not part.offset)
        computed = sum(part.count for part in batch.slices) + fed_again
        assert computed <= self.max_tokens + MIN_SLICE + 2 * (PAGE_TOKENS - 1)
        decode = [part for part in batch.slices if before[part.key][0] <= DECODE_TOKENS]
        assert batch.slices[: len(decode)] == decode  # first
        assert batch.decode_rows == sum(part.count for part in decode)
        assert batch.prefill_tokens == sum(part.count for part in batch.slices) - batch.decode_rows
        if decode:
            assert batch.prefill_tokens <= max(FIRST_SLICE, MIN_SLICE)
        alive = {key: before[key] for key in before if key not in batch.expired}
        passed_over = set()
        if len(batch.slices) == len(decode) and any(t > DECODE_TOKENS for t, _ in alive.values()):
            passed_over.add("prefill")
        if not decode and any(t <= DECODE_TOKENS for t, _ in alive.values()):
            passed_over.add("decode")
        if self.mixed:
            assert not passed_over
        else:
            assert not (decode and batch.prefill_tokens)
            assert not passed_over or self.passed_over not in passed_over  # they alternate
        self.passed_over = min(passed_over, default="")
        for key in batch.expired:
            assert 0 < self.waiting[key][0][1] < self.now
            self.pop(key)
        for part in batch.slices:
            tokens, deadline, _, _ = self.waiting[part.key][0]
            assert not 0 < deadline < self.now
            assert part.offset == before[part.key][1]
            assert part.count >= 1
            assert part.last is (part.offset + part.count == tokens)
            self.progress[part.key] = part.offset + part.count
            if part.last:
                self.pop(part.key)
        assert len(self.scheduler) == sum(map(len, self.waiting.values()))
        return batch.slices


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), steps),
        st.tuples(st.just("run"), st.integers(1, 3)),
        st.tuples(st.just("remove"), st.sampled_from(KEYS)),
        st.tuples(st.just("cut"), st.sampled_from(KEYS)),
    )
)


@given(
    moves=moves,
    max_tokens=st.integers(DECODE_TOKENS + 1, 600),
    max_sessions=st.integers(1, 10),
    mixed=st.booleans(),
)
def test_every_token_runs_once_in_order_within_the_bounds(moves, max_tokens, max_sessions, mixed):
    model = Model(max_tokens, max_sessions, mixed)
    for kind, argument in moves:
        if kind == "add":
            for step in argument:
                model.add(*step)
        elif kind == "run":
            for _ in range(argument):
                model.run_one()
        elif kind == "remove":
            assert model.scheduler.remove(argument) == len(model.waiting.pop(argument, []))
            model.progress.pop(argument, None)
        elif argument in model.progress:
            model.scheduler.cut(argument)
            model.pop(argument)
    rounds = 0
    while model.scheduler:
        model.run_one()
        rounds += 1
        assert rounds < 100_000
    assert not model.waiting


@settings(max_examples=60)
@given(
    crowd=st.lists(st.tuples(st.sampled_from("bcdef"), sizes, certain), max_size=40),
    ours=sizes,
    kind=st.sampled_from((Certain.ALL, Certain.SOME)),
    max_tokens=st.integers(DECODE_TOKENS + 1, 300),
    max_sessions=st.integers(1, 6),
    mixed=st.booleans(),
)
def test_nobody_starves_behind_owners_who_never_stop(crowd, ours, kind, max_tokens, max_sessions, mixed):
    """However much five others have waiting, and however fast they come back, a step is served within the
    turns of as many owners as there are."""
    scheduler: Scheduler[str] = Scheduler(max_tokens, max_sessions=max_sessions, mixed=mixed)
    steps_of = {f"{owner}{i}": step for i, (owner, *step) in enumerate(crowd)}

    def add(key: str) -> None:
        tokens, kind = steps_of[key]
        scheduler.add(key, key[0], tokens, certain=kind)

    for key in steps_of:
        add(key)
    for _ in range(3):
        for part in scheduler.next_batch().slices:
            if part.last:
                add(part.key)
    scheduler.add("ours", "a", ours, certain=kind)
    owners = 6
    smallest = min(MIN_SLICE, max_tokens - DECODE_TOKENS)
    turns = owners if ours <= DECODE_TOKENS else owners * -(-ours // smallest)
    bound = turns if mixed else 2 * turns
    for _ in range(bound):
        done = False
        for part in scheduler.next_batch().slices:
            done |= part.key == "ours" and part.last
            if part.last and part.key != "ours":
                add(part.key)
        if done:
            return
    pytest.fail(f"not served within {bound} batches")


def slices(scheduler: Scheduler[str], now: int = 0) -> list[Slice[str]]:
    return scheduler.next_batch(now).slices


def test_decode_does_not_wait_for_a_long_prompt():
    scheduler: Scheduler[str] = Scheduler(512)
    scheduler.add("prompt", "a", 2000)
    assert slices(scheduler) == [Slice("prompt", 0, 512, False)]
    scheduler.add("chat", "b", 1)
    assert slices(scheduler) == [Slice("chat", 0, 1, True), Slice("prompt", 512, FIRST_SLICE, False)]
    assert slices(scheduler) == [Slice("prompt", 512 + FIRST_SLICE, 512, False)]


def test_apart_they_alternate_and_slices_stay_short():
    scheduler: Scheduler[str] = Scheduler(512, mixed=False)
    scheduler.add("prompt", "a", 2000)
    scheduler.add("chat", "b", 1)
    now, done = 10**9, 0
    for _ in range(4):
        assert slices(scheduler, now) == [Slice("chat", 0, 1, True)]
        scheduler.add("chat", "b", 1)  # however soon it comes back, one slice is before it
        assert slices(scheduler, now) == [Slice("prompt", done, FIRST_SLICE, False)]
        done += FIRST_SLICE


def test_a_session_between_two_tokens_still_counts_as_decoding():
    scheduler: Scheduler[str] = Scheduler(512)
    scheduler.add("chat", "b", 1)
    scheduler.add("prompt", "a", 2000)
    now = 10**9
    assert len(slices(scheduler, now)) == 2
    assert slices(scheduler, now + DECODE_LINGERS_NS - 1)[0].count == FIRST_SLICE
    assert slices(scheduler, now + DECODE_LINGERS_NS)[0].count == 512


def test_slices_beside_decode_follow_the_measured_cost():
    scheduler: Scheduler[str] = Scheduler(512, prefill_target_us=20_000)
    scheduler.observe(0, 1, 5_000)
    scheduler.observe(512, 0, 51_200)  # 0.1 ms a token
    scheduler.add("chat", "b", 1)
    scheduler.add("prompt", "a", 2000)
    assert [part.count for part in slices(scheduler)] == [1, 200]


def test_prompts_of_one_owner_run_in_order_of_arrival_and_share_what_is_left():
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.add("a", "x", 70)
    scheduler.add("b", "x", 50)
    assert slices(scheduler) == [Slice("a", 0, 70, True), Slice("b", 0, 30, False)]
    assert slices(scheduler) == [Slice("b", 30, 20, True)]


def test_prompts_of_two_owners_take_turns_and_are_resumed_where_they_were():
    scheduler: Scheduler[str] = Scheduler(100)
    for i in range(5):
        scheduler.add(f"a{i}", "a", 250)
    scheduler.add("b", "b", 150)
    ran = [slices(scheduler)[0] for _ in range(4)]
    assert ran == [
        Slice("a0", 0, 100, False),
        Slice("b", 0, 100, False),
        Slice("a0", 100, 100, False),
        Slice("b", 100, 50, True),
    ]


def test_no_slivers_of_prompts():
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.add("a", "x", 95)
    scheduler.add("b", "y", 50)
    assert slices(scheduler) == [Slice("a", 0, 95, True)]
    assert slices(scheduler) == [Slice("b", 0, 50, True)]


def test_steps_of_one_session_never_share_a_batch():
    scheduler: Scheduler[str] = Scheduler(100)
    for _ in range(3):
        scheduler.add("a", "x", 1)
    assert [slices(scheduler) for _ in range(4)] == [[Slice("a", 0, 1, True)]] * 3 + [[]]


def test_more_decoding_sessions_than_a_batch_holds_take_turns():
    scheduler: Scheduler[str] = Scheduler(64, max_sessions=3)
    for key in ("a0", "a1", "a2", "a3", "b0"):
        scheduler.add(key, key[0], 1)
    assert [part.key for part in slices(scheduler)] == ["a0", "b0", "a1"]
    scheduler.add("b0", "b", 1)
    assert [part.key for part in slices(scheduler)] == ["a2", "b0", "a3"]


def test_rows_that_are_fed_again_count_in_the_budget():
    """A peer whose sessions always go back by a token must not make batches of 32 times that."""
    scheduler: Scheduler[str] = Scheduler(512, max_sessions=64)
    for number in range(63):
        scheduler.add(f"a{number}", "a", 1, again=31)
    scheduler.add("b", "b", 1)
    first = scheduler.next_batch(1)
    assert "b" in [part.key for part in first.slices]
    assert (first.decode_rows, first.again) == (16, 15 * 31)
    assert [len(scheduler.next_batch(now).slices) for now in (2, 3, 4)] == [16, 16, 16]


def test_a_late_step_leaves_before_it_costs_anything():
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.add("a", "x", 1, 50)
    scheduler.add("a", "x", 1)
    scheduler.add("b", "x", 250, 50)
    first = scheduler.next_batch(50)
    assert [part.key for part in first.slices] == ["a", "b"]
    assert not first.expired
    late = scheduler.next_batch(51)
    assert [part.key for part in late.slices] == ["a"]
    assert late.expired == ["b"]
    assert not scheduler


def test_remove_forgets_a_session():
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.add("a", "x", 500)
    scheduler.add("a", "x", 1)
    scheduler.next_batch()
    assert scheduler.remove("a") == 2
    assert scheduler.remove("a") == 0
    assert not scheduler
    assert slices(scheduler) == []


def test_impossible_numbers_are_refused():
    with pytest.raises(UsageError):
        Scheduler(DECODE_TOKENS)
    with pytest.raises(LocalProtocolError):
        Scheduler(10).add("a", "x", 0)


# Guesses.


def knowing(base_us: int, row_us: int) -> Scheduler[str]:
    """One that has seen what batches take."""
    time = RowTime()
    for rows in (1, 8, 16) * 4:
        time.observe(rows, base_us + row_us * rows)
    return Scheduler(512, row_time=time)


def keys(batch: Batch[str]) -> list[str]:
    return [part.key for part in batch.slices]


def test_guesses_wait_for_certain_rows_where_rows_are_dear():
    scheduler = knowing(3100, 400)
    scheduler.add("guess", "a", 8, certain=Certain.NONE)
    scheduler.add("mixed", "b", 8, certain=Certain.SOME)
    scheduler.add("plain", "c", 1)
    assert keys(scheduler.next_batch(1)) == ["plain"]
    scheduler.add("plain", "c", 1)
    assert sorted(keys(scheduler.next_batch(2))) == ["mixed", "plain"]  # it was passed over once
    assert keys(scheduler.next_batch(3)) == ["guess"]


@pytest.mark.parametrize("certain", [Certain.SOME, Certain.NONE])
def test_branches_of_what_was_passed_over_are_left_out(certain):
    """Their session can go on without them, and others would wait for as many rows as eight steps have."""
    scheduler = knowing(3100, 400)
    scheduler.add("tree", "a", 4, certain=certain, again=2, branches=60)
    scheduler.add("tree", "a", 4, certain=certain, branches=60)
    now, batches = 1, []
    while not batches or "tree" not in keys(batches[-1]):
        scheduler.add("plain", "c", 1)
        batches.append(scheduler.next_batch(now))
        now += 10_000_000
    parts = sorted(batches[-1].slices, key=lambda part: part.key)
    assert parts == [Slice("plain", 0, 1, True), Slice("tree", 0, 4, True, bare=True)]
    assert (batches[-1].decode_rows, batches[-1].again) == (5, 2)
    alone = scheduler.next_batch(now)
    assert (alone.slices, alone.again) == ([Slice("tree", 0, 4, True)], 60)


def test_guesses_go_along_where_they_cost_little():
    scheduler = knowing(10_000, 50)
    scheduler.add("guess", "a", 8, certain=Certain.NONE)
    scheduler.add("more", "b", 8, certain=Certain.NONE)
    scheduler.add("plain", "c", 1)
    batch = scheduler.next_batch(1)
    assert keys(batch) == ["plain", "guess"]
    assert 50 * (batch.decode_rows - 1) <= SHARE * 10_050


def test_before_anything_is_known_guesses_wait():
    scheduler: Scheduler[str] = Scheduler(512)
    scheduler.add("guess", "a", 1, certain=Certain.NONE)
    scheduler.add("plain", "c", 1)
    assert keys(scheduler.next_batch(1)) == ["plain"]


def test_a_batch_without_certain_rows_is_short():
    scheduler = knowing(3100, 400)
    for owner in "abcd":
        scheduler.add(owner, owner, 4, certain=Certain.NONE)
    assert [scheduler.next_batch(now).decode_rows for now in (1, 2)] == [8, 8]
    scheduler.add("a", "a", 8, certain=Certain.NONE)
    scheduler.add("b", "b", 8, certain=Certain.SOME)
    assert keys(scheduler.next_batch(3)) == ["b"]  # its session needs the certain row
    assert keys(scheduler.next_batch(4)) == ["a"]


def test_guesses_do_not_wait_for_ever():
    """A plain user's next token is there at once, whenever a batch ends."""
    scheduler = knowing(3100, 400)
    scheduler.add("guess", "a", 8, certain=Certain.NONE)
    began = now = 10**9
    while True:
        scheduler.add("plain", "b", 1)
        ran = keys(scheduler.next_batch(now))
        assert "plain" in ran
        if "guess" in ran:
            break
        now += 3_500_000
    assert PATIENCE_NS <= now - began < PATIENCE_NS + 3 * 3_500_000


def test_places_that_are_always_taken_are_shared_with_steps_that_were_passed_over():
    scheduler: Scheduler[str] = Scheduler(512, max_sessions=1)
    scheduler.add("mixed", "a", 8, certain=Certain.SOME)
    ran = []
    for now in range(1, 5):
        scheduler.add("plain", "b", 1)
        ran += keys(scheduler.next_batch(now))
    assert ran == ["plain", "mixed", "plain", "plain"]


@pytest.mark.parametrize("certain", [Certain.SOME, Certain.NONE])
def test_sessions_that_guess_fill_no_batch_where_all_of_them_take_longer_than_their_patience(certain):
    """One client floods a slow node: a plain token mostly waited for a batch of 129 rows."""
    scheduler = knowing(10_000, 6_000)
    ran = Counter()
    now = began = 10**9
    for key in map(str, range(16)):
        scheduler.add(key, "a", 8, certain=certain)
    while now - began < 60 * PATIENCE_NS:
        scheduler.add("plain", "b", 1)
        batch = scheduler.next_batch(now)
        assert "plain" in keys(batch)
        assert batch.decode_rows <= 1 + 8
        ran.update(keys(batch))
        now += 1000 * (10_000 + 6_000 * batch.decode_rows)
        for key in keys(batch):
            if key != "plain":
                scheduler.add(key, "a", 8, certain=certain)
    del ran["plain"]
    assert min(ran.values()) > 10  # nobody waits for ever
    assert max(ran.values()) <= min(ran.values()) + 2


def test_steps_that_were_passed_over_make_a_batch_twice_as_long_at_most():
    scheduler = knowing(1000, 100)
    for key in map(str, range(16)):
        scheduler.add(key, "a", 8, certain=Certain.SOME)
    scheduler.add("plain", "b", 1)
    assert keys(scheduler.next_batch(1)) == ["plain"]
    scheduler.add("plain", "b", 8)
    batch = scheduler.next_batch(2)
    assert batch.decode_rows == 8 + 16
    assert scheduler.next_batch(3).decode_rows == 8  # where there is no plain one, it is short


@pytest.mark.parametrize("others", [Certain.SOME, Certain.ALL])
@pytest.mark.parametrize("owner", ["a", "c"])
def test_a_long_step_that_was_passed_over_waits_for_no_stream_of_short_ones(owner, others):
    """Those of its own address group were short enough to go beside those of another: each such turn was its
    group's, and it never came."""
    scheduler = knowing(3100, 400)
    sessions = {"plain": ("d", "", 1, Certain.ALL), "long": (owner, "near", 8, Certain.SOME)}
    for number in range(4):
        sessions[f"short{number}"] = ("a", "near", 2, others)
        sessions[f"other{number}"] = ("b", "far", 2, Certain.SOME)

    def add(key):
        by, group, tokens, kind = sessions[key]
        scheduler.add(key, by, tokens, group=group, certain=kind)

    for key in sorted(sessions, reverse=True):
        add(key)
    ran = Counter()
    for now in range(1, 101):
        batch = scheduler.next_batch(now)
        ran.update(keys(batch))
        for key in keys(batch):
            add(key)
    assert ran["plain"] == 100
    assert ran["long"] > 15
    assert min(ran.values()) > 10


def test_a_long_step_waits_for_no_stream_of_short_ones_where_nothing_is_certain():
    """Batches are short then, and its owner's other steps were short enough for what was left of each."""
    scheduler = knowing(3100, 400)
    sessions = {"b3": 3, "a1": 1, "a5": 5, "a8": 8, "c2": 2, "b4": 4, "d6": 6}
    groups = dict(zip("abcd", ["near", "far", "far", "near"], strict=True))

    def add(key):
        scheduler.add(key, key[0], sessions[key], group=groups[key[0]], certain=Certain.SOME)

    for key in sessions:
        add(key)
    ran = Counter()
    for now in range(1, 101):
        batch = scheduler.next_batch(now)
        assert batch.decode_rows <= 8
        ran.update(keys(batch))
        for key in keys(batch):
            add(key)
    assert set(ran) == set(sessions)
    assert min(ran.values()) > 5


def test_guesses_do_not_wait_for_ever_behind_steps_that_are_certain_in_part():
    scheduler = knowing(3100, 400)
    scheduler.add("guess", "a", 8, certain=Certain.NONE)
    ran = []
    for now in range(1, 3 * PATIENCE_NS, 10_000_000):
        scheduler.add("mixed", "b", 8, certain=Certain.SOME)
        ran += keys(scheduler.next_batch(now))
    assert ran[0] == "mixed"
    assert "guess" in ran


def test_a_session_waits_for_its_own_guesses():
    scheduler = knowing(3100, 400)
    scheduler.add("a", "a", 8, certain=Certain.NONE)
    scheduler.add("a", "a", 1)
    scheduler.add("plain", "b", 1)
    assert [keys(scheduler.next_batch(now)) for now in (1, 2, 3)] == [["plain"], ["a"], ["a"]]


def test_owners_take_turns_in_guesses_too():
    scheduler = knowing(3100, 400)
    for number in range(4):
        scheduler.add(f"a{number}", "a", 8, certain=Certain.NONE)
    scheduler.add("b", "b", 8, certain=Certain.NONE)
    assert [keys(scheduler.next_batch(now)) for now in (1, 2, 3)] == [["a0"], ["b"], ["a1"]]


def test_late_guesses_leave_and_a_session_that_ends_takes_its_guesses_along():
    scheduler = knowing(3100, 400)
    scheduler.add("a", "a", 8, 50, certain=Certain.NONE)
    scheduler.add("b", "b", 8, 50, certain=Certain.SOME)
    scheduler.add("c", "c", 8, certain=Certain.NONE)
    assert scheduler.remove("c") == 1
    assert sorted(scheduler.next_batch(51).expired) == ["a", "b"]
    assert not scheduler


def test_guesses_leave_room_for_prompts():
    scheduler = knowing(3100, 400)
    scheduler.add("guess", "a", 8, certain=Certain.NONE)
    scheduler.add("prompt", "b", 600)
    batch = scheduler.next_batch(1)
    assert keys(batch) == ["guess", "prompt"]
    assert batch.prefill_tokens >= MIN_SLICE


def test_a_peer_that_calls_its_guesses_certain_gets_what_it_had_before():
    scheduler = knowing(3100, 400)
    for owner in "abc":
        scheduler.add(owner, owner, 8)
    assert keys(scheduler.next_batch(1)) == ["a", "b", "c"]
