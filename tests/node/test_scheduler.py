from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.scheduler import DECODE_TOKENS, Scheduler, Slice
from swarm_node.swarm.errors import LocalProtocolError, UsageError

steps = st.lists(
    st.tuples(st.integers(0, 12), st.one_of(st.integers(1, DECODE_TOKENS), st.integers(1, 700))), max_size=60
)


@given(
    moves=st.lists(st.one_of(st.tuples(st.just("add"), steps), st.tuples(st.just("run"), st.integers(1, 3)))),
    max_tokens=st.integers(DECODE_TOKENS, 600),
    max_sessions=st.integers(1, 10),
    beside=st.integers(1, 300),
)
def test_every_token_runs_once_in_order_within_the_budget(moves, max_tokens, max_sessions, beside):
    scheduler: Scheduler[int] = Scheduler(max_tokens, max_sessions=max_sessions, prefill_beside_decode=beside)
    waiting: dict[int, list[int]] = {}
    progress: dict[int, int] = {}

    def run_one() -> None:
        batch = scheduler.next_batch()
        assert bool(batch) is bool(waiting)
        keys = [piece.key for piece in batch]
        assert len(set(keys)) == len(keys)
        assert len(keys) <= max(max_sessions, 2)
        assert sum(piece.count for piece in batch) <= max_tokens
        decode = [piece for piece in batch if waiting[piece.key][0] <= DECODE_TOKENS]
        if decode:
            assert sum(p.count for p in batch if p not in decode) <= beside
        prompts = any(tokens[0] > DECODE_TOKENS for tokens in waiting.values())
        assert not prompts or any(p not in decode for p in batch)  # prefill always moves
        assert (
            not any(t[0] <= DECODE_TOKENS for t in waiting.values()) or decode or max_tokens <= DECODE_TOKENS
        )
        for piece in batch:
            tokens = waiting[piece.key][0]
            assert piece.offset == progress.get(piece.key, 0)
            assert piece.count >= 1
            assert piece.last is (piece.offset + piece.count == tokens)
            progress[piece.key] = piece.offset + piece.count
            if piece.last:
                waiting[piece.key].pop(0)
                progress.pop(piece.key)
                if not waiting[piece.key]:
                    del waiting[piece.key]

    for kind, argument in moves:
        if kind == "add":
            for key, tokens in argument:
                scheduler.add(key, tokens)
                waiting.setdefault(key, []).append(tokens)
        else:
            for _ in range(argument):
                run_one()
        assert len(scheduler) == sum(map(len, waiting.values()))
    rounds = 0
    while scheduler:
        run_one()
        rounds += 1
        assert rounds < 100_000
    assert not waiting


def test_decode_does_not_wait_for_a_long_prompt():
    scheduler: Scheduler[str] = Scheduler(512, prefill_beside_decode=128)
    scheduler.add("prompt", 2000)
    assert scheduler.next_batch() == [Slice("prompt", 0, 512, False)]
    scheduler.add("chat", 1)
    assert scheduler.next_batch() == [Slice("chat", 0, 1, True), Slice("prompt", 512, 128, False)]
    assert scheduler.next_batch() == [Slice("prompt", 640, 512, False)]


def test_prompts_run_in_order_of_arrival_and_share_what_is_left():
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.add("a", 70)
    scheduler.add("b", 50)
    assert scheduler.next_batch() == [Slice("a", 0, 70, True), Slice("b", 0, 30, False)]
    assert scheduler.next_batch() == [Slice("b", 30, 20, True)]


def test_steps_of_one_session_never_share_a_batch():
    scheduler: Scheduler[str] = Scheduler(100)
    for _ in range(3):
        scheduler.add("a", 1)
    assert [scheduler.next_batch() for _ in range(4)] == [[Slice("a", 0, 1, True)]] * 3 + [[]]


def test_more_decoding_sessions_than_a_batch_holds_take_turns():
    scheduler: Scheduler[int] = Scheduler(64, max_sessions=3)
    for key in range(5):
        scheduler.add(key, 1)
    assert [piece.key for piece in scheduler.next_batch()] == [0, 1, 2]
    scheduler.add(0, 1)
    assert [piece.key for piece in scheduler.next_batch()] == [3, 4, 0]


def test_remove_forgets_a_session():
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.add("a", 500)
    scheduler.add("a", 1)
    scheduler.next_batch()
    assert scheduler.remove("a") == 2
    assert scheduler.remove("a") == 0
    assert not scheduler
    assert scheduler.next_batch() == []


def test_impossible_numbers_are_refused():
    with pytest.raises(UsageError):
        Scheduler(0)
    with pytest.raises(LocalProtocolError):
        Scheduler(10).add("a", 0)
