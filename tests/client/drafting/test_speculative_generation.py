"""Answers with drafts are those without, token for token, in fewer passes: over chains and relays, through
repairs, and where an answer ends inside a draft."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from swarm_node.client.decoding.head_batch import HeadBatcher
from swarm_node.client.decoding.sampling import Sampler, SamplingParams
from swarm_node.client.drafting.drafter import Drafter
from swarm_node.client.drafting.flight import Came
from swarm_node.client.hops.trace import HopLoad, HopTimings
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.protocol.messages import ErrorMessage, Want
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import BOS, CONTEXT, EOS, VOCAB, FakeSwarm, ToyHead, expected, settle
from tests.doubles.oracle import Oracle, Recorded, send_all
from tests.doubles.toy_model import one_hot
from tests.doubles.virtual_time import in_virtual_time

pytestmark = pytest.mark.slow

PROMPT = [BOS, *b"Tell me something long enough to be cut into several chunks of a prefill, please."]
N = 48
GREEDY = expected(PROMPT, N)


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is drafted is sent: what is drafted must never matter."""
    send_all(monkeypatch)


def _often(number: int) -> bool:
    return number % 5 == 3


async def _swarm(oracle: Oracle | None = None, **spans: str) -> tuple[FakeSwarm, dict[str, Any]]:
    swarm = await FakeSwarm(**(spans or {"a": "0-1", "b": "2-3", "c": "4-5"})).start()
    return swarm, {"local": swarm.local(draft=oracle)}


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("wrong", [lambda number: False, _often, lambda number: True])
async def test_greedy_answers_are_the_same(chain: bool, wrong: Callable[[int], bool]) -> None:
    oracle = Oracle(GREEDY, wrong)
    swarm, options = await _swarm(oracle)
    async with swarm.client(chain=chain, **options) as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    told = answer.speculated
    assert told.passes + told.accepted == N - 1
    assert told.drafted > 0
    if sum(not wrong(number) for number in range(1, N)) > N // 2:
        assert told.passes < N / 2
    assert {hop.prefill.tokens for hop in answer.hops} == {len(PROMPT)}
    assert answer.as_dict()["speculation"]["accepted"] == told.accepted  # type: ignore[index]
    assert oracle.sequences[0].closed


@pytest.mark.parametrize("most", [1, 4])
async def test_no_step_is_larger_than_a_hop_takes(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    send_all(monkeypatch, ahead=16)
    swarm, options = await _swarm(Oracle(GREEDY))
    swarm.nodes["b"].behaviour.max_step_tokens = most
    async with swarm.client(**options) as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    assert answer.repairs == 0
    assert (answer.speculated.accepted > 0) == (most > 1)


class RowByRowHead(ToyHead):
    """The last bits of a row do not depend on the rows beside it, as with the real heads."""

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        return np.concatenate([super(RowByRowHead, self).logits(row[None]) for row in hidden])


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.2, "repetition_penalty": 1.3},
    {"temperature": 0.9, "frequency_penalty": 0.7, "presence_penalty": -0.4, "logit_bias": {65: 2.0}},
    {"temperature": 0.0, "repetition_penalty": 1.2, "logprobs": 3},
]


@pytest.mark.parametrize("options", SAMPLED)
async def test_sampled_answers_are_the_same(options: dict[str, Any]) -> None:
    options = {"max_new_tokens": N, "ignore_eos": True, "seed": 5, **options}
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client(RowByRowHead()) as model:
        plain = await model.generate_detailed(PROMPT, speculate="off", **options)
    oracle = Oracle(plain.token_ids, _often)
    async with swarm.client(local=swarm.local(RowByRowHead(), draft=oracle)) as model:
        drafted = await model.generate_detailed(PROMPT, **options)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.logprobs == plain.logprobs
    assert (drafted.logprobs is None) == ("logprobs" not in options)
    assert plain.speculated.drafted == 0
    assert drafted.speculated.accepted > N / 3


class SuccessorHead(ToyHead):
    """Each token is followed by a fixed one: read off the last row, in which the embedding is loud."""

    def __init__(self, text: Sequence[int]) -> None:
        self._next = dict(zip(text, [*text[1:], text[0]], strict=True))

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        return super().embed(ids) * 1000

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        tokens = (hidden @ super().embed(range(VOCAB)).T).argmax(1).tolist()
        return one_hot([self._next[token] for token in tokens])


async def test_the_text_itself_is_drafted_from() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    song = b"row yuba!"
    async with swarm.client(SuccessorHead(song)) as model:
        plain = await model.generate_detailed([*song], max_new_tokens=60, speculate="off")
        answer = await model.generate_detailed([*song], max_new_tokens=60)
    assert answer.text.encode() == (song * 8)[:60] == plain.text.encode()
    assert plain.speculated.passes == 59
    assert answer.speculated.passes < 59 / 4


async def test_probabilities_are_those_of_the_model() -> None:
    """Many draws of two tokens, of which the first is drafted: rows of fixed logits."""
    logits = np.random.default_rng(3).standard_normal((3, 6), np.float32)

    class Fixed:
        def logits(self, hidden: np.ndarray) -> np.ndarray:
            return logits[hidden[:, 0].astype(int)]

        def embed(self, ids: Sequence[int]) -> np.ndarray:
            return np.zeros((len(ids), 1), np.float32)

    heads = HeadBatcher(Fixed())
    counts: Counter[tuple[int, ...]] = Counter()
    draws = 6_000
    for seed in range(draws):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        chosen = await heads.choose(np.array([[0.0], [1.0]], np.float32), sampler, (2,))
        counts[tuple(choice.token for choice in chosen.choices)] += 1
    await heads.close()
    first, second, _ = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = {(token,): float(first[token]) for token in range(6) if token != 2}
    probabilities |= {(2, token): float(first[2] * second[token]) for token in range(6)}
    assert set(counts) == set(probabilities)
    chi = sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in probabilities.items())
    assert chi < 31  # 10 degrees of freedom: one in 1,700 draws of seeds; the seeds are fixed


ROW = np.zeros((1, 1), np.float32)


class Forced:
    """Rules that leave no choice about some tokens, and let everything follow."""

    def __init__(self, forced: Sequence[int]) -> None:
        self.forced = forced

    def fitting(self) -> Callable[[Sequence[int]], int]:
        return len


# Ends


async def _ending(answer: bytes | list[int], **options: Any) -> tuple[Any, list[str], FakeSwarm]:
    """An answer that the head says position by position, all drafted and right."""
    swarm = await FakeSwarm(a="0-5").start()
    head = PositionedHead(answer)
    async with swarm.client(local=swarm.local(head, draft=Oracle(list(answer)))) as model:
        stream = model.stream(PROMPT, **options)
        events = [event async for event in stream.events()]
        await settle()
    assert [event.token for event in events] == list(stream.result.token_ids)
    return stream.result, [event.text for event in events], swarm


class PositionedHead(ToyHead):
    """Says a fixed answer, a token a row: for drafts that are right."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = list(answer)
        self._said = 0

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        tokens = self._answer[self._said : self._said + len(hidden)]
        self._said += len(tokens)
        tokens += [EOS] * (len(hidden) - len(tokens))
        return one_hot(tokens)


def _fed(swarm: FakeSwarm, node: str = "a") -> int:
    return max(step.position + step.tokens for step in swarm.nodes[node].steps)


async def test_end_of_text_inside_a_draft() -> None:
    result, texts, swarm = await _ending([*b"abcd", EOS, *b"more"])
    assert (result.text, result.finish_reason) == ("abcd", "stop")
    assert (texts, result.token_ids[-1]) == ([*"abcd", ""], EOS)
    assert result.speculated.passes == 1
    assert _fed(swarm) == len(PROMPT) + 4  # nothing behind the end of text was drafted


async def test_ignored_end_of_text_inside_a_draft() -> None:
    result, _, _ = await _ending([*b"abcd", EOS, *b"more"], ignore_eos=True, max_new_tokens=9)
    assert (result.text, result.finish_reason) == ("abcdmore", "length")


async def test_a_stop_string_inside_a_draft() -> None:
    result, texts, _ = await _ending(b"go STOP and on and on", stop="STOP", max_new_tokens=20)
    assert (result.text, result.finish_reason) == ("go ", "stop_string")
    assert bytes(result.token_ids) == b"go STOP"
    assert "".join(texts) == "go "


@pytest.mark.parametrize("most", [1, 2, 3, 8, 9, 17])
async def test_max_new_tokens_inside_a_draft(most: int) -> None:
    result, _, swarm = await _ending(b"abcdefghijklmnopqrstuvwxyz", max_new_tokens=most)
    assert (len(result.token_ids), result.finish_reason) == (most, "length")
    assert _fed(swarm) == len(PROMPT) + most - 1  # the last token is never fed


async def test_the_end_of_the_context_inside_a_draft() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    prompt = [BOS, *b"x" * (CONTEXT - 7)]
    answer = expected(prompt, 6)
    async with swarm.client(local=swarm.local(draft=Oracle(answer))) as model:
        result = await model.generate_detailed(prompt, ignore_eos=True)
    assert (list(result.token_ids), result.finish_reason) == (answer, "length")
    assert _fed(swarm) == CONTEXT - 1


async def test_a_guide_that_is_over_inside_a_draft() -> None:
    class Five:
        """Five even tokens."""

        def __init__(self) -> None:
            self.count = 0

        @property
        def is_over(self) -> bool:
            return self.count >= 5

        def allows(self, token: int) -> bool:
            return token % 2 == 0

        def allowed(self) -> Any:
            return np.arange(0, VOCAB, 2)

        def accept(self, token: int) -> None:
            assert not self.is_over
            self.count += 1

    class Rising(ToyHead):
        def logits(self, hidden: np.ndarray) -> np.ndarray:
            return np.tile(np.arange(VOCAB, dtype=np.float32), (len(hidden), 1))

    heads = HeadBatcher(Rising())
    sampler = Sampler(SamplingParams(), guide=Five())
    most = VOCAB - 2  # the largest even one
    chosen = await heads.choose(np.zeros((8, 24), np.float32), sampler, (most,) * 7)
    assert [choice.token for choice in chosen.choices] == [most] * 5
    await heads.close()


async def test_a_long_prompt_is_indexed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And found in as it would be in one."""
    monkeypatch.setattr("swarm_node.client.drafting.at_hand.READ_AT_ONCE", 3)
    session = Recorded()
    drafter = Drafter([4, 7, 8, 9, 1, 2, 3, 7], 4)
    reading = asyncio.create_task(drafter.read())
    await asyncio.sleep(0)
    assert not reading.done()
    await reading
    drafter.chosen(session, [8], Came(ROW), ended=False)
    await drafter.go_on(ROW)
    assert session.sent == [[8, 9, 1]]


async def _first_sent(most: int, forced: Sequence[int] = ()) -> list[int]:
    session = Recorded()
    drafter = Drafter([7, 8, 9, 7], most, frozenset({5}))
    await drafter.read()
    drafter.chosen(session, [8], Came(ROW), ended=False)
    await drafter.go_on(ROW, Forced(forced))
    return [token for step in session.sent for token in step]


async def test_what_a_guide_leaves_no_choice_about_is_guessed() -> None:
    assert await _first_sent(5) == [8, 9, 7, 8]  # of the text
    assert await _first_sent(5, [1, 2, 3]) == [8, 1, 2, 3]
    assert await _first_sent(4, [1, 2, 3]) == [8, 1, 2]
    assert await _first_sent(5, [1, 5, 3]) == [8, 1]  # nothing behind what ends the answer
    assert await _first_sent(2, [1]) == [8]  # the last token is never fed


async def test_a_round_has_the_price_of_its_route() -> None:
    session = Recorded()
    session.hops = [HopTimings("a", Span(0, 2), "none", load=HopLoad(row_s=2.0, sessions=5.0))]
    drafter = Drafter([4, 7, 8, 9, 1, 2, 3, 7], 4)
    await drafter.read()
    drafter.chosen(session, [8], Came(ROW), ended=False)
    await drafter.go_on(ROW)
    assert drafter.speculated.price == pytest.approx(2.0 * 5 / 1000)  # a trip takes 1000 s here
    drafter.close()


async def test_guesses_follow_while_others_are_under_way() -> None:
    """And what a guide leaves no choice about, behind what is there of it."""
    session = Recorded()
    drafter = Drafter([1, 2, 3], 40)
    await drafter.read()
    drafter.chosen(session, [7], Came(ROW), ended=False)
    await drafter.go_on(ROW, Forced([10, 11]))
    assert session.sent == [[7, 10, 11]]
    came = await drafter.receive()
    assert list(came.draft) == [10, 11]
    drafter.chosen(session, [10, 11, 12], came, ended=False)
    await drafter.go_on(ROW)
    assert session.sent[1:] == [[12]]
    assert session.back == []
    drafter.close()


# Repair in the middle of a verification


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("broken", ["b", "c"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("die_at_step", 11),
        ("mute_at_step", 11),
        ("nan_at_step", 11),
        ("wrong_rows_at_step", 11),
        ("garbage_at_step", 11),
        ("error_at_step", (11, ErrorMessage(None, None, ErrorCode.INTERNAL, "no", True))),
        ("error_at_step", (11, ErrorMessage(None, None, ErrorCode.BAD_STEP, "no", False))),
    ],
)
async def test_a_hop_that_fails_while_a_draft_is_checked(
    name: str, value: object, broken: str, chain: bool
) -> None:
    swarm, options = await _swarm(Oracle(GREEDY, _often), a="0-1", b="2-3", c="4-5", d="2-3", e="4-5")
    for spare in ("d", "e"):
        swarm.announce(spare, decode_ms_per_block=50.0)
    setattr(swarm.nodes[broken].behaviour, name, value)
    async with swarm.client(chain=chain, **options) as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    assert answer.repairs >= 1
    assert answer.speculated.passes < N / 2


@in_virtual_time
async def test_a_frozen_hop_and_a_cut_edge_while_drafts_are_checked() -> None:
    swarm, options = await _swarm(Oracle(GREEDY, _often), a="0-2", b="3-5", spare="3-5")
    async with swarm.client(**options) as model:
        stream = model.stream(PROMPT, max_new_tokens=N, ignore_eos=True)
        tokens = []
        async for event in stream.events():
            tokens.append(event.token)
            if len(tokens) == 12:
                swarm.cut(*(hop.peer_id for hop in stream.route.hops))  # type: ignore[union-attr]
            if len(tokens) == 30:
                swarm.freeze(stream.route.hops[1].peer_id)  # type: ignore[union-attr]
    assert tokens == GREEDY
    assert stream.result.repairs >= 2


@in_virtual_time
async def test_a_hop_that_fails_right_after_a_rollback() -> None:
    for step in range(2, 14):
        swarm, options = await _swarm(Oracle(GREEDY, lambda number: True), a="0-2", b="3-5", c="3-5")
        async with swarm.client(**options) as model:
            for peer_id in ("b", "c"):
                swarm.nodes[peer_id].behaviour.die_at_step = step
            answer = await model.generate_detailed(PROMPT, max_new_tokens=12, ignore_eos=True)
        assert list(answer.token_ids) == GREEDY[:12]


# Pages are named by what was really said


@pytest.mark.parametrize("dies", [False, True])
@in_virtual_time
async def test_the_next_turn_finds_its_pages(dies: bool) -> None:
    swarm, options = await _swarm(Oracle(GREEDY, _often), a="0-2", b="3-5", c="3-5")
    async with swarm.client(**options) as model:
        if dies:  # a hop that joins in the middle has named pages that a rollback makes others
            for peer_id in ("b", "c"):
                swarm.nodes[peer_id].behaviour.die_at_step = 9
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
        longer = [*PROMPT, *answer.token_ids, *b"and then?"]
        model._local.draft.answer = []  # type: ignore[union-attr]
        again = await model.generate_detailed(longer, max_new_tokens=8, ignore_eos=True)
    assert list(answer.token_ids) == GREEDY
    assert list(again.token_ids) == expected(longer, 8)
    said = len(PROMPT) + N - 1
    assert again.cached_tokens == said - said % PAGE_TOKENS


@in_virtual_time
async def test_a_hop_that_joins_with_a_wrong_draft_names_the_right_pages() -> None:
    """It is asked for pages up to the end of the draft, which then goes another way."""
    prompt = [*PROMPT, *PROMPT][: 3 * PAGE_TOKENS - 4]
    greedy = expected(prompt, 12)
    for step in (3, 4, 5):  # the checks over the page's border; the prompt is one or two steps
        swarm, options = await _swarm(Oracle(greedy, lambda number: True), a="0-2", b="3-5", c="3-5")
        async with swarm.client(**options) as model:
            for peer_id in ("b", "c"):
                swarm.nodes[peer_id].behaviour.die_at_step = step
            answer = await model.generate_detailed(prompt, max_new_tokens=12, ignore_eos=True)
            again = await model.generate_detailed([*prompt, *greedy, 7], max_new_tokens=2, ignore_eos=True)
        assert list(answer.token_ids) == greedy
        assert answer.repairs == 1
        assert again.cached_tokens == 3 * PAGE_TOKENS
        assert list(again.token_ids) == expected([*prompt, *greedy, 7], 2)


# The session itself


async def _rows(swarm: FakeSwarm, ids: Sequence[int]) -> np.ndarray:
    """The hidden state of each token, fed one by one."""
    async with swarm.client() as model:
        session = model.session(256)
        rows = [await session.append([token]) for token in ids]
        session.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("chain", [True, False])
async def test_all_rows_of_a_step(chain: bool) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    ids = [7 * number % 250 for number in range(150)]
    rows = await _rows(swarm, ids)
    async with swarm.client(chain=chain) as model:
        session = model.session(256)
        assert (await session.append(ids[:9], want=Want.NOTHING)).shape == (0, 24)
        assert np.array_equal(await session.append(ids[9:30], want=Want.ALL), rows[9:30])  # in one step
        assert np.array_equal(await session.append(ids[30:], want=Want.ALL), rows[30:])  # in chunks
        session.rollback(17)
        assert session.length == 17
        assert np.array_equal(await session.append(ids[17:20], want=Want.ALL), rows[17:20])
        session.rollback(0)
        assert np.array_equal(await session.append(ids[:4], want=Want.ALL), rows[:4])
        session.close()


@in_virtual_time
async def test_all_rows_come_though_the_route_breaks() -> None:
    ids = [7 * number % 250 for number in range(150)]
    rows = await _rows(await FakeSwarm(a="0-5").start(), ids)
    for step in range(1, 7):
        swarm = await FakeSwarm(a="0-2", b="3-5", c="3-5").start()
        async with swarm.client() as model:
            for peer_id in ("b", "c"):
                swarm.nodes[peer_id].behaviour.die_at_step = step
            session = model.session(256)
            await session.append(ids[:5])
            assert np.array_equal(await session.append(ids[5:9], want=Want.ALL), rows[5:9])
            session.rollback(7)
            assert np.array_equal(await session.append(ids[7:12], want=Want.ALL), rows[7:12])
            assert np.array_equal(await session.append(ids[12:], want=Want.ALL), rows[12:])
            session.close()


async def test_a_route_that_is_opened_anew_sends_no_rows_that_nobody_wants() -> None:
    ids = [7 * number % 250 for number in range(60)]
    rows = await _rows(await FakeSwarm(a="0-5").start(), ids)
    swarm = await FakeSwarm(a="0-5", b="0-5").start()
    async with swarm.client(prefix_cache=False) as model:
        session = model.session(256)
        await session.append(ids[:50])
        (used,) = [peer for peer, node in swarm.nodes.items() if node.open_sessions]
        (other,) = set(swarm.nodes) - {used}
        swarm.network.kill(used)
        assert np.array_equal(await session.append(ids[50:], want=Want.ALL), rows[50:])
        wanted = [(step.want, step.tokens) for step in swarm.nodes[other].steps]
        session.close()
    assert wanted == [(Want.NOTHING, 50), (Want.ALL, 10)]


async def test_a_session_that_never_opened_goes_back_to_nothing_only() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        session = model.session(16)
        session.rollback(0)
        with pytest.raises(Exception, match="cannot go back to 1"):
            session.rollback(1)
        with pytest.raises(Exception, match="there are no tokens to feed"):
            await session.append([])
        session.close()
    assert not swarm.nodes["a"].opens


async def test_answers_side_by_side_with_drafts() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    prompts = [[BOS, *f"prompt {number}".encode()] for number in range(5)]
    async with swarm.client() as model:
        answers = await asyncio.gather(
            *(model.generate_detailed(prompt, max_new_tokens=30, ignore_eos=True) for prompt in prompts)
        )
    for prompt, answer in zip(prompts, answers, strict=True):
        assert list(answer.token_ids) == expected(prompt, 30)
