"""A client of the chaos test, in a process of its own: streams answers, and says what happens to each token.

Times are of ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from ..processes.parent import next_order, tell
from .ahead import AheadAnswer

WAIT_S = 60.0
"""For a first route: all replicas of a span may be away when a generation begins."""


def prompts_for(model: str, n: int) -> list[list[int]] | list[str]:
    """``n`` prompts; of token ids for a model without a chat template, long enough for KV pages of theirs to
    be kept."""
    from ..soak.polite import QUESTIONS
    from ..tiny_model import VOCAB

    if Path(model).is_dir():
        return [
            [1 + (17 * k + 31 * i * i + 7 * i) % (VOCAB - 1) for i in range(40 + 9 * k)] for k in range(n)
        ]
    return [QUESTIONS[k % len(QUESTIONS)] for k in range(n)]


class ChaosClient:
    """``streams`` answers side by side, one after another each. ``pause_s``: what a reader does between two
    tokens. ``ahead``: guess as far ahead as can be."""

    def __init__(
        self,
        *,
        model: str,
        initial_peers: Sequence[str],
        streams: int,
        prompts: int,
        new_tokens: int,
        pause_s: float,
        exact: bool,
        prefix_cache: bool,
        draft: str | None = None,
        ahead: bool = False,
    ) -> None:
        self._model_path = model
        self._initial_peers = initial_peers
        self._streams = streams
        self._prompts = prompts_for(model, prompts)
        self._options: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_eos": True}
        self._pause_s = pause_s
        self._ahead = ahead
        self._connection: dict[str, Any] = {"prefix_cache": prefix_cache, "threads": 1}
        if exact:
            self._connection |= {"wire_codec": "none", "dtype": "float32", "quantize": "none"}
        if draft is not None:
            self._connection["draft"] = draft
        self._stopping = False
        self._expected: list[list[int]] = []

    async def run(self) -> None:
        from swarm_node.client import AsyncSwarmModel

        async with await AsyncSwarmModel.connect(
            model=self._model_path, initial_peers=self._initial_peers, wait=WAIT_S, **self._connection
        ) as model:
            watch_blame(model)
            tell("ready")
            streaming: list[asyncio.Task[None]] = []
            while (order := await next_order()) is not None:
                match order["order"]:
                    case "answer":
                        tell("answered", token_ids=await self._undisturbed(model))
                    case "go":
                        self._expected = order["expected"]
                        streaming = [
                            asyncio.create_task(self._stream(model, n)) for n in range(self._streams)
                        ]
                    case "stop":
                        self._stopping = True
                        await asyncio.gather(*streaming)
                        break
            for task in streaming:
                task.cancel()
            await asyncio.gather(*streaming, return_exceptions=True)
        tell("left")

    async def _undisturbed(self, model: Any) -> list[list[int]]:
        answers = [await model.generate_detailed(prompt, **self._options) for prompt in self._prompts]
        return [list(answer.token_ids) for answer in answers]

    async def _stream(self, model: Any, number: int) -> None:
        generation = 0
        while not self._stopping:
            which = (generation + number) % len(self._prompts)
            began = time.monotonic()
            try:
                one = self._one_ahead if self._ahead else self._one
                ended = await one(model, number, which)
            except Exception as error:  # noqa: BLE001 - told: the verdict is the parent's
                tell("failed", stream=number, error=f"{type(error).__name__}: {error}", at=time.monotonic())
                await asyncio.sleep(1.0)  # what fails at once must not fail a thousand times
            else:
                tell("ended", stream=number, began=began, at=time.monotonic(), **ended)
            generation += 1

    async def _one(self, model: Any, number: int, which: int) -> dict[str, Any]:
        read = _Reader(number, self._pause_s)
        async with model.stream(self._prompts[which], **self._options) as stream:
            text = "".join(await read.all(stream, lambda: stream._run._session))
            result = stream.result
        return {
            "token_ids": list(result.token_ids),
            "expected": self._expected[which],
            "text_is_whole": text == result.text,
            **read.told(result.repaired),
            "drafted": result.speculated.drafted,
            "accepted": result.speculated.accepted,
        }

    async def _one_ahead(self, model: Any, number: int, which: int) -> dict[str, Any]:
        read, expected = _Reader(number, self._pause_s), self._expected[which]
        prompt = await model._reader.ids(self._prompts[which], raw=False)
        async with AheadAnswer(model, prompt, expected, seed=number) as answer:
            await read.all(answer, lambda: answer.session)
        return {
            "token_ids": answer.token_ids,
            "expected": expected,
            "text_is_whole": True,  # nobody made any
            **read.told(answer.session.repaired),
            "drafted": answer.drafted,
            "accepted": answer.accepted,
        }


class _Reader:
    """Reads an answer, and tells of each of its pieces."""

    def __init__(self, number: int, pause_s: float) -> None:
        self._number = number
        self._pause_s = pause_s
        self._gaps: list[float] = []
        self._repaired_at: list[float] = []

    async def all(self, answer: AsyncIterable[Any], session: Callable[[], Any]) -> list[Any]:
        """Its pieces. ``session`` gives the answer's, once there is a piece."""
        pieces = []
        tell("began", stream=self._number, at=time.monotonic())
        asked_at = time.monotonic()
        async for piece in answer:
            at = time.monotonic()
            pieces.append(piece)
            self._gaps.append(at - asked_at)
            peers, repairs = progress_of(session())
            self._repaired_at += [at] * (repairs - len(self._repaired_at))
            tell("token", stream=self._number, n=len(pieces), at=at, peers=peers, repairs=repairs)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            asked_at = time.monotonic()
        return pieces

    def told(self, repaired: Sequence[Any]) -> dict[str, Any]:
        """What each piece took; and every repair, with when the next token came."""
        at = [*self._repaired_at, *[time.monotonic()] * (len(repaired) - len(self._repaired_at))]
        return {
            "gaps": [round(gap, 4) for gap in self._gaps],
            "repairs": [{**each.as_dict(), "at": then} for each, then in zip(repaired, at, strict=True)],
        }


def progress_of(session: Any) -> tuple[list[str], int]:
    """The peers of the route in use, in order, and how often it was repaired."""
    return [hop.peer_id for hop in session.route.hops], len(session.repaired)


def watch_blame(model: Any) -> None:
    """Tell of every peer that this client holds a failure against, and whether it keeps away from it."""
    router = model._router
    note = router.failed

    def failed(failure: Any) -> None:
        note(failure)
        cause, peer = failure.cause, failure.peer_id
        tell(
            "blamed",
            peer=peer,
            cause=type(cause).__name__,
            code=str(getattr(cause, "code", "") or ""),
            message=str(cause)[:200],
            banned=router.health.is_banned(peer, router.now()),
            at=time.monotonic(),
        )

    router.failed = failed


def stream_answers(**options: Any) -> None:
    """``options`` are those of ``ChaosClient``."""
    uvloop.run(ChaosClient(**options).run())
