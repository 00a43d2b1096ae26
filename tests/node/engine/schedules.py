"""Random clients on a small engine, and what each of their sessions would have got alone.

Each schedule is a few clients that generate greedily over a random tiny model and head. What they sent and
got is recorded, and replayed afterwards session by session, without an engine, in KV memory of its own and
in as few pieces as it can be. The plain torch path and MLX must agree to float32 rounding, the native kernels
and the plain path with ``deterministic`` bit for bit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepDone, StepDropped, StepFailed, StepJob, TokenSequence
from swarm_node.shards.models.backend import Memory, SpanBackend
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import ErrorCode
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.types import Span

HIDDEN, VOCAB, LONGEST, LONGEST_OF_WINDOWS = 64, 128, 150, 400
SPANS = [Span(0, 4), Span(0, 4), Span(1, 3)]
NO_MORE = (ErrorCode.OVERLOADED, ErrorCode.CACHE_LOST)
NEAR_TIE = 1e-3
"""Logits closer than this may fall either way in float32."""

_generator = torch.Generator().manual_seed(11)
EMBEDDING = torch.randn((VOCAB, HIDDEN), generator=_generator).numpy()
HEAD = torch.randn((VOCAB, HIDDEN), generator=_generator).numpy()


@dataclass
class Record:
    """One answered step: the session's tokens up to its end, where it began, the rows that came back."""

    tokens: list[int]
    start: int
    rows: np.ndarray  # of the last len(rows) tokens


@dataclass
class Log:
    span: Span
    records: list[Record] = field(default_factory=list)
    lost: int = 0  # steps that went back behind a window
    went_back: int = 0  # of them, those that began where they were told to
    dropped: int = 0  # void steps that were not computed


class Client:
    """One session that generates, and its forks."""

    def __init__(self, engine: Engine, rng: random.Random, owner: str, logs: list[Log], longest: int) -> None:
        self.engine, self.rng, self.owner, self.logs = engine, rng, owner, logs
        self.longest = longest
        self.steps = 0
        self.holds: dict[asyncio.Future, int | None] = {}  # where a step that was refused could have begun
        self.flown: list[asyncio.Future] = []  # steps that were void

    def chain(self, tokens: list[int]) -> tuple[bytes, ...]:
        digest, chain = b"salt of " + self.owner[:1].encode(), []
        for end in range(PAGE_TOKENS, len(tokens) + 1, PAGE_TOKENS):
            digest = blake2b(digest + bytes(tokens[end - PAGE_TOKENS : end]), digest_size=32).digest()
            chain.append(digest)
        return tuple(chain)

    def send(
        self, sequence: TokenSequence, log: Log, tokens: list[int], start: int, want: Want, trouble: str = ""
    ):
        """Submit the step that feeds ``tokens[start:]``; a future of its rows, or of its failure's code."""
        future = asyncio.get_running_loop().create_future()
        self.steps += 1
        x = EMBEDDING[tokens[start:]]
        if trouble == "nan":
            x = np.full_like(x, np.nan)
        tokens = list(tokens)

        def done(job: StepJob, outcome: object) -> None:
            if isinstance(outcome, StepDone):
                rows = NONE.decode(outcome.payload, outcome.rows, HIDDEN)
                assert outcome.position == len(tokens) - outcome.rows
                log.records.append(Record(tokens, start, rows))
                future.set_result(rows)
            elif isinstance(outcome, StepFailed):
                log.lost += outcome.code is ErrorCode.CACHE_LOST
                self.holds[future] = outcome.holds
                future.set_result(outcome.code)
            else:
                assert isinstance(outcome, StepDropped)
                log.dropped += not sequence.closed
                future.set_result(None)

        payload = x.tobytes()
        self.engine.submit(
            StepJob(
                sequence=sequence,
                step=self.steps,
                position=start,
                tokens=len(x),
                want=want,
                payload=payload[:-4] if trouble == "short" else payload,
                arrived_ns=perf_counter_ns(),
                done=done,
                deadline_ns=1 if trouble == "late" else perf_counter_ns() + 10**12,
            )
        )
        return future

    async def feed(
        self, sequence: TokenSequence, log: Log, tokens: list[int], start: int, want: Want
    ) -> np.ndarray | ErrorCode | None:
        """``send``, and once more from where the session can go on, if it is told so."""
        sent = self.send(sequence, log, tokens, start, want)
        answer = await sent
        if answer is ErrorCode.CACHE_LOST and (holds := self.holds[sent]) is not None:
            assert holds <= start
            answer = await self.send(sequence, log, tokens, holds, Want.ALL)
            log.went_back += 1
            if isinstance(answer, np.ndarray):
                return answer[start - holds :] if want is Want.ALL else answer[-1:]
            # Others may have taken the room of a state that only the cache had.
        return answer

    async def open(self, span: Span, max_tokens: int, **more) -> TokenSequence | None:
        for _ in range(50):
            sequence = self.engine.open_sequence(self.owner, span, max_tokens, NONE, NONE, **more)
            if sequence is not None:
                return sequence
            await asyncio.sleep(0.001)  # others are still there
        return None

    async def converse(self, prompt: list[int], span: Span) -> None:
        rng = self.rng
        tokens = list(prompt)
        budget = min(self.longest, len(tokens) + rng.randint(1, 40))
        sequence = await self.open(span, budget, prefix=self.chain(tokens))
        if sequence is None:
            return
        log = Log(span)
        self.logs.append(log)
        if await self.prefill(sequence, log, tokens):
            await self.generate(sequence, log, tokens, budget, forks=rng.choice([0, 0, 1, 2]))
            while sequence is not None and rng.random() < 0.3:
                sequence = await self.branch(sequence, tokens, budget)
        if sequence is None:
            return
        if rng.random() < 0.8:
            self.engine.close_sequence(sequence, self.chain(tokens[: sequence.length]))
        else:
            self.engine.close_sequence(sequence)

    async def prefill(self, sequence: TokenSequence, log: Log, tokens: list[int]) -> bool:
        """Feed the prompt in pieces, some of them without waiting; False: hung up in the middle."""
        rng = self.rng
        at = min(sequence.length, len(tokens) - 1)
        if rng.random() < 0.3:
            at = rng.randint(0, at)  # another hop knew less
            if rng.random() < 0.3:  # and is another one now: what it sends is not what the names stand for
                sequence.end_names()
                tokens[at:] = [rng.randrange(VOCAB) for _ in tokens[at:]]
        futures = []
        while at < len(tokens):
            end = min(len(tokens), at + rng.choice([1, 7, 30, 64, 150]))
            want = Want.LAST if end == len(tokens) else rng.choice([Want.NOTHING, Want.ALL, Want.LAST])
            futures.append(self.send(sequence, log, tokens[:end], at, want))
            at = end
            if rng.random() < 0.3:
                await futures[-1]
            elif sequence.length == at and rng.random() < 0.15:
                # Another prompt from somewhere on, while the first is under way. It must go back for that: a
                # client that just went on otherwise would break the promise of its chain.
                at = rng.randint(0, at - 1)
                tokens[at:] = [rng.randrange(VOCAB) for _ in tokens[at:]]
        if rng.random() < 0.1:
            self.engine.close_sequence(sequence)
            await asyncio.gather(*futures)
            return False
        rows = (await asyncio.gather(*futures))[-1]
        if not isinstance(rows, np.ndarray) and rows in (*NO_MORE, ErrorCode.BAD_STEP):
            return False  # went back into shared pages, and there was no room, or behind a window
        assert isinstance(rows, np.ndarray)
        tokens.append(greedy(rows))
        return True

    async def generate(
        self, sequence: TokenSequence, log: Log, tokens: list[int], budget: int, forks: int
    ) -> None:
        """The last of ``tokens`` is chosen but not fed yet."""
        rng = self.rng
        beams: list[asyncio.Task[None]] = []
        while len(tokens) <= budget:
            at = len(tokens) - 1
            room = budget - len(tokens)
            move = rng.random()
            if move < 0.08:
                trouble = rng.choice(["nan", "short", "late"])
                code = await self.send(sequence, log, tokens, at, Want.LAST, trouble)
                if code in NO_MORE:
                    break
                assert code in (ErrorCode.BAD_TENSOR, ErrorCode.DEADLINE)
            elif move < 0.25 and room > 0:  # a draft, of which a part is kept
                draft = tokens + [rng.randrange(VOCAB) for _ in range(min(room, 4))]
                rows = await self.feed(sequence, log, draft, at, Want.ALL)
                if not isinstance(rows, np.ndarray) and rows in NO_MORE:
                    break
                assert isinstance(rows, np.ndarray)
                kept = rng.randint(0, len(draft) - len(tokens))
                tokens[:] = draft[: len(tokens) + kept]
                tokens.append(greedy(rows[: kept + 1]))
            elif move < 0.28 and room > 8:  # two drafts, the second before the first one is answered
                draft = tokens + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
                longer = draft + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
                sent = [self.send(sequence, log, draft, at, Want.ALL)]
                sent.append(self.send(sequence, log, longer, len(draft), Want.ALL))
                both = [await each for each in sent]
                if not isinstance(both[0], np.ndarray) and both[0] in NO_MORE:
                    break
                rows = both[0] if not isinstance(both[1], np.ndarray) else np.concatenate(both)
                kept = rng.randint(0, len(rows) - 1)
                tokens[:] = longer[: len(tokens) + kept]
                tokens.append(greedy(rows[: kept + 1]))
            elif move < 0.33 and room > 24:
                if not await self.fly(sequence, log, tokens, budget):
                    break
            elif move < 0.38 and len(tokens) > 4:  # an edit: go back and say something else
                tokens[rng.randint(1, len(tokens) - 1) :] = [rng.randrange(VOCAB)]
            elif move < 0.48 and forks:
                forks -= 1
                self.fork(beams, sequence, tokens, budget)
            else:
                rows = await self.feed(sequence, log, tokens, at, Want.LAST)
                if not isinstance(rows, np.ndarray) and rows in NO_MORE:
                    break
                assert isinstance(rows, np.ndarray)
                tokens.append(greedy(rows))
            if rng.random() < 0.03:
                break
        tokens.pop()  # chosen but never fed
        await asyncio.gather(*beams)

    async def fly(self, sequence: TokenSequence, log: Log, tokens: list[int], budget: int) -> bool:
        """Rounds of a few short steps under way, of which the last ones turn out to be void; whether the
        session can go on. As ``generate`` before and after it."""
        rng = self.rng
        for _ in range(rng.randint(1, 3)):
            at, sent = len(tokens) - 1, []
            longer = list(tokens)
            while len(longer) + 8 <= budget and len(sent) < rng.randint(2, 4):
                start = len(longer) if sent else at
                longer += [rng.randrange(VOCAB) for _ in range(rng.randint(1, 8) - (not sent))]
                sent.append(self.send(sequence, log, longer, start, Want.ALL))
            if len(sent) < 2:
                break
            last = self.steps
            judged = rng.randint(1, len(sent) - 1)
            rows = [await each for each in sent[:judged]]
            if not all(isinstance(each, np.ndarray) for each in rows):
                return False  # refused for want of room: so are all behind
            for _ in range(rng.choice([0, 0, 1, 5])):
                await asyncio.sleep(0)
            self.engine.void(sequence, last - len(sent) + judged + 1, last)
            whole = np.concatenate(rows)
            kept = rng.randint(0, len(whole) - 1)
            tokens[:] = longer[: at + 1 + kept]
            tokens.append(greedy(whole[: kept + 1]))
            self.flown.extend(sent[judged:])
        return True

    async def branch(self, parent: TokenSequence, tokens: list[int], budget: int) -> TokenSequence | None:
        """Close a session and go on in a fork of it, which goes back first and feeds something else."""
        rng, held = self.rng, min(parent.settled, len(tokens))
        child = None
        if held and parent.keeps(held, budget):
            child = self.engine.open_sequence(
                self.owner, parent.span, budget, NONE, NONE, parent=parent, parent_tokens=held
            )
        self.engine.close_sequence(parent)
        if child is None:
            return None
        log = Log(child.span)
        self.logs.append(log)
        at = rng.choice([0, rng.randrange(held)])
        tokens[at:] = [rng.randrange(VOCAB) for _ in tokens[at:]]
        rows = await self.send(child, log, tokens, at, Want.ALL)
        assert isinstance(rows, np.ndarray) or rows in NO_MORE
        return child

    def fork(
        self, beams: list[asyncio.Task[None]], sequence: TokenSequence, tokens: list[int], budget: int
    ) -> None:
        held = min(sequence.settled, len(tokens) - 1)
        shared = self.rng.randint(max(0, held - 40), held)
        if not sequence.keeps(shared, budget):
            return  # the node refuses it
        child = self.engine.open_sequence(
            self.owner, sequence.span, budget, NONE, NONE, parent=sequence, parent_tokens=shared
        )
        if child is None:
            return
        log = Log(sequence.span)
        self.logs.append(log)
        beam = tokens[:shared] + [self.rng.randrange(VOCAB)]

        async def run() -> None:
            await self.generate(child, log, beam, budget, forks=0)
            self.engine.close_sequence(child)

        beams.append(asyncio.create_task(run()))


def greedy(rows: np.ndarray) -> int:
    return int((rows[-1] @ HEAD.T).argmax())


class Alone:
    """One session after the other without an engine, in memory of their own."""

    def __init__(self, model: SpanBackend[Any], span: Span) -> None:
        self.model, self.span = model, span
        self.memory = OwnMemory(model, "float32", LONGEST_OF_WINDOWS + 8, states=14)  # a page each
        self.tokens: list[int] = []
        self.out = np.empty((0, HIDDEN), np.float32)

    def rows(self, tokens: list[int], records: Sequence[Record]) -> list[np.ndarray]:
        """What each of ``records``, all of beginnings of ``tokens``, should have got. ``tokens`` begin none
        that were asked for before. What is new is computed in one piece."""
        start = 0
        while start < min(len(self.tokens), len(tokens)) and self.tokens[start] == tokens[start]:
            start += 1
        start = self.memory.start(start)
        piece = self.memory.slice(start, len(tokens) - start)
        fresh = self.model.forward(EMBEDDING[tokens[start:]], [piece], self.memory.pool, self.span)
        self.tokens, self.out = tokens, np.concatenate([self.out[:start], fresh])
        return [self.out[len(each.tokens) - len(each.rows) : len(each.tokens)] for each in records]


def by_longest(records: Sequence[Record]) -> Iterator[tuple[list[int], list[Record]]]:
    """Records whose tokens begin those of the last of them, which come first; each record is in one group.
    Groups that begin alike follow each other, so that no beginning is computed twice."""
    group: list[Record] = []
    longest: list[int] = []
    for record in sorted(records, key=lambda each: each.tokens):
        if record.tokens[: len(longest)] != longest:
            yield longest, group
            group = []
        group.append(record)
        longest = record.tokens
    if group:
        yield longest, group


async def run_schedule(
    model: SpanBackend[Memory],
    seed: int,
    longest: int = LONGEST,
    spans: Sequence[Span] = SPANS,
    states: Sequence[int] = (0,),
) -> tuple[list[Log], Engine]:
    """``states``: one of these is how many the pool has."""
    rng = random.Random(seed)
    settings = EngineSettings(
        max_batch_tokens=rng.choice([16, 40, 100, 512]),
        max_sessions_per_batch=rng.choice([1, 3, 16]),
        prefill_target_ms=rng.choice([0.1, 2.0, 25.0]),
        prefix_cache=rng.random() < 0.8,
    )
    slots = rng.choice([24, 48, 160]) * longest // LONGEST
    pool = model.new_pool(slots, "float32", rng.choice(states))
    engine = Engine(model, pool, threads=1, settings=settings)
    engine.start()
    logs: list[Log] = []
    systems = [
        [rng.randrange(VOCAB) for _ in range(rng.choice([0, 20, 32, 70, 96]) * longest // LONGEST)]
        for _ in range(2)
    ]

    async def user(owner: str) -> None:
        history: list[int] = []
        for _ in range(rng.randint(1, 3)):
            client = Client(engine, rng, owner, logs, longest)
            prompt = (history or rng.choice(systems)) + [
                rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))
            ]
            await client.converse(prompt[: longest - 40], rng.choice(spans))
            history = prompt if rng.random() < 0.5 else []

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(user(f"{rng.choice('ab')}{i}") for i in range(rng.randint(2, 6))))
    finally:
        await engine.stop()
    await asyncio.sleep(0)
    return logs, engine


def check(model: SpanBackend[Any], logs: list[Log], *, exact: bool) -> int:
    """Every row and every greedy choice against the session alone; returns how many rows there were."""
    seen = 0
    for span in {log.span for log in logs}:
        alone = Alone(model, span)
        for tokens, records in by_longest([each for log in logs if log.span == span for each in log.records]):
            for record, wanted in zip(records, alone.rows(tokens, records), strict=True):
                check_rows(record.rows, wanted, exact=exact)
                seen += len(wanted)
    return seen


def check_rows(rows: np.ndarray, wanted: np.ndarray, *, exact: bool) -> None:
    if exact:
        assert np.array_equal(rows, wanted)
        return
    np.testing.assert_allclose(rows, wanted, atol=1e-4, rtol=1e-4)
    logits = wanted @ HEAD.T
    chosen = (rows @ HEAD.T).argmax(-1, keepdims=True)
    margin = logits.max(-1) - np.take_along_axis(logits, chosen, -1)[:, 0]
    assert (margin < NEAR_TIE).all()


def check_books(engine: Engine) -> None:
    load = engine.load()
    assert (load.queued, load.sequences, load.used_slots, load.reserved_slots) == (0, 0, 0, 0)
    assert (load.used_states, load.reserved_states) == (0, 0)
    assert load.free_slots + load.cached_slots == load.total_slots
    assert load.free_states + load.cached_states == load.total_states
    assert engine.settings.prefix_cache or not (load.cached_slots or load.cached_states)
    assert engine.free_tokens == engine.total_tokens
