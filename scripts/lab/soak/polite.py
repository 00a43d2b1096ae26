"""Clients of the soak test that mean well: they ask, cancel, chat, rest, leave and come again.

Every answer that is read to its end must have the tokens of the undisturbed one.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop

from ..processes.parent import next_order, tell
from ..prompts import MODEL, long_prompt

QUESTIONS = (
    "What is the capital of France?",
    "Count from 1 to 20.",
    "Write a short poem about the sea.",
    "List three uses of a paper clip.",
    "Explain why the sky is blue to a child.",
    "Who wrote Moby Dick, and when?",
)
NEW_TOKENS = 24
LONG_TOKENS = 700
AT_ONCE = 3
"""Things that one client does side by side."""
VISITS = 12
"""Things that a client does before it leaves and another one comes, in the same process."""


def undisturbed_answers(**options: Any) -> list[list[int]]:
    """The tokens of each question's answer while nobody else asks."""
    return uvloop.run(_undisturbed_answers(**options))


async def _undisturbed_answers(*, initial_peers: Sequence[str], model: str) -> list[list[int]]:
    async with await _connect(initial_peers, model) as swarm:
        return [list((await _ask(swarm, question)).token_ids) for question in QUESTIONS]


def polite_clients(**options: Any) -> dict[str, Any]:
    """Until the parent says stop. Counts of what was done, wrong answers, and errors nobody expected."""
    return uvloop.run(PoliteClients(**options).run())


def client_to_kill(*, initial_peers: Sequence[str], model: str) -> None:
    """Answers side by side for ever: for a parent that kills this process in their middle."""
    uvloop.run(_answer_for_ever(initial_peers, model))


async def _answer_for_ever(initial_peers: Sequence[str], model: str) -> None:
    async with await _connect(initial_peers, model) as swarm:
        tell("ready")
        while True:
            async with asyncio.TaskGroup() as group:
                for question in QUESTIONS[:AT_ONCE]:
                    group.create_task(swarm.generate(question, max_new_tokens=400, ignore_eos=True))


class PoliteClients:
    """Clients in one process, one after another. ``rest_s``: how long an idle one holds its session, chosen
    around the node's limit so that some are dropped."""

    def __init__(
        self,
        *,
        initial_peers: Sequence[str],
        model: str,
        expected: Sequence[Sequence[int]],
        seed: int,
        rest_s: float,
    ) -> None:
        self._peers, self._model = initial_peers, model
        self._expected = expected
        self._rng = random.Random(seed)
        self._rest_s = rest_s
        self._stopping = asyncio.Event()
        self._done: Counter[str] = Counter()
        self._wrong = 0
        self._repairs = 0
        self._busy = 0
        self._errors: Counter[str] = Counter()
        self._encode: Callable[[str], list[int]] | None = None

    async def run(self) -> dict[str, Any]:
        stop = asyncio.create_task(self._until_stopped())
        tell("ready")
        while not self._stopping.is_set():
            async with await _connect(self._peers, self._model) as model, asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._visit(model))
            self._done["client left"] += 1
        await stop
        return {
            "done": dict(self._done),
            "wrong_answers": self._wrong,
            "repairs": self._repairs,
            "busy": self._busy,
            "errors": dict(self._errors),
        }

    async def _until_stopped(self) -> None:
        await next_order()
        self._stopping.set()

    async def _visit(self, model: Any) -> None:
        from swarm_node.swarm.errors import BusyError

        doings: list[Callable[[Any], Awaitable[None]]] = [
            *(self.answer, self.answer, self.answer, self.cancel_between, self.cancel_within),
            *(self.chat, self.long_prompt, self.rest, self.never_begun),
        ]
        for _ in range(VISITS // AT_ONCE):
            if self._stopping.is_set():
                return
            doing = self._rng.choice(doings)
            try:
                await doing(model)
            except BusyError:
                self._busy += 1
            except Exception as error:  # noqa: BLE001 - counted: the verdict is the parent's
                self._errors[f"{doing.__name__}: {type(error).__name__}: {error}"] += 1
            else:
                self._done[doing.__name__] += 1
                tell("did")

    # What clients do.

    async def answer(self, model: Any) -> None:
        which = self._rng.randrange(len(QUESTIONS))
        self._compare(which, await _ask(model, QUESTIONS[which]))

    async def cancel_between(self, model: Any) -> None:
        """Stop after some pieces."""
        async with model.stream(self._rng.choice(QUESTIONS), max_new_tokens=200, ignore_eos=True) as stream:
            for _ in range(self._rng.randrange(1, 30)):
                await anext(stream)

    async def cancel_within(self, model: Any) -> None:
        """Cancelled at any moment, while opening, in the prompt, or waiting for a token."""
        try:
            async with asyncio.timeout(self._rng.uniform(0.001, 0.4)):
                await model.generate(self._long_prompt(), max_new_tokens=200, ignore_eos=True)
        except TimeoutError:
            pass

    async def never_begun(self, model: Any) -> None:
        await model.stream(QUESTIONS[0]).aclose()

    async def chat(self, model: Any) -> None:
        """Two turns, so that the second finds the first one's pages."""
        turns = [{"role": "user", "content": self._rng.choice(QUESTIONS)}]
        first = await model.generate(turns, max_new_tokens=NEW_TOKENS)
        turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "Are you sure?"}]
        await model.generate(turns, max_new_tokens=NEW_TOKENS)

    async def long_prompt(self, model: Any) -> None:
        await model.generate(self._long_prompt(), max_new_tokens=2, ignore_eos=True)

    async def rest(self, model: Any) -> None:
        """Hold a session without using it, perhaps for too long, then go on with the right tokens."""
        which = self._rng.randrange(len(QUESTIONS))
        async with model.stream(QUESTIONS[which], max_new_tokens=NEW_TOKENS, ignore_eos=True) as stream:
            await anext(stream)
            try:
                async with asyncio.timeout(self._rng.uniform(0, self._rest_s)):
                    await self._stopping.wait()
            except TimeoutError:
                pass
            self._compare(which, await stream.finish())

    def _compare(self, which: int, answer: Any) -> None:
        self._repairs += answer.repairs
        if list(answer.token_ids) != list(self._expected[which]):
            self._wrong += 1

    def _long_prompt(self) -> list[int]:
        if self._encode is None:
            from swarm_node.shards.checkpoint.opening import open_checkpoint

            with open_checkpoint(self._model) as checkpoint:
                self._encode = checkpoint.tokenizer().encode
        return long_prompt(self._encode, LONG_TOKENS, self._rng.randrange(1_000_000))


async def _connect(initial_peers: Sequence[str], model: str) -> Any:
    from swarm_node.client import AsyncSwarmModel

    options: dict[str, Any] = {"initial_peers": initial_peers, "threads": 1, "wait": 30}
    if model != str(MODEL):  # made up: it has no certificate, and learned scales would change its answers
        options["wire_codec"] = "int8"
    return await AsyncSwarmModel.connect(model=model, **options)


async def _ask(model: Any, question: str) -> Any:
    return await model.generate_detailed(question, max_new_tokens=NEW_TOKENS, ignore_eos=True)
