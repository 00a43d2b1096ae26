"""A client of the chaos test, in a process of its own: streams answers, and says what happens to each token.

Times are of ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from ..processes.parent import next_order, tell

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
    tokens."""

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
    ) -> None:
        self._model_path = model
        self._initial_peers = initial_peers
        self._streams = streams
        self._prompts = prompts_for(model, prompts)
        self._options: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_eos": True}
        self._pause_s = pause_s
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
                ended = await self._one(model, number, which)
            except Exception as error:  # noqa: BLE001 - told: the verdict is the parent's
                tell("failed", stream=number, error=f"{type(error).__name__}: {error}", at=time.monotonic())
                await asyncio.sleep(1.0)  # what fails at once must not fail a thousand times
            else:
                tell("ended", stream=number, began=began, at=time.monotonic(), **ended)
            generation += 1

    async def _one(self, model: Any, number: int, which: int) -> dict[str, Any]:
        gaps: list[float] = []
        repaired_at: list[float] = []
        text = ""
        async with model.stream(self._prompts[which], **self._options) as stream:
            tell("began", stream=number, at=time.monotonic())
            asked_at = time.monotonic()
            async for piece in stream:
                at = time.monotonic()
                gaps.append(at - asked_at)
                text += piece
                peers, repairs = progress_of(stream)
                repaired_at += [at] * (repairs - len(repaired_at))
                tell("token", stream=number, n=len(gaps), at=at, peers=peers, repairs=repairs)
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
                asked_at = time.monotonic()
            result = stream.result
        repaired_at += [time.monotonic()] * (result.repairs - len(repaired_at))
        return {
            "token_ids": list(result.token_ids),
            "expected": self._expected[which],
            "text_is_whole": text == result.text,
            "gaps": [round(gap, 4) for gap in gaps],
            "repairs": repairs_of(result, repaired_at),
            "drafted": result.speculated.drafted,
            "accepted": result.speculated.accepted,
        }


def progress_of(stream: Any) -> tuple[list[str], int]:
    """The peers of the route in use, in order, and how often it was repaired."""
    session = stream._run._session
    return [hop.peer_id for hop in session.route.hops], len(session.repaired)


def repairs_of(result: Any, at: Sequence[float]) -> list[dict[str, Any]]:
    """Every repair of a generation: what ``Generation.repaired`` says of it, and when the next token came."""
    return [{**repair.as_dict(), "at": moment} for repair, moment in zip(result.repaired, at, strict=True)]


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
