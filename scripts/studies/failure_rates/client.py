"""The client of ``failure_rates``: answers of a given length, repaired, or begun anew when a server fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import uvloop

from ...lab.chaos.client import WAIT_S, progress_of, prompts_for
from ...lab.processes.parent import next_order, tell

PROMPTS = 3


class FailureRatesClient:
    """Does one cell of the table after the other: see ``cell``."""

    def __init__(self, *, model: str, initial_peers: Sequence[str]) -> None:
        self._model_path = model
        self._initial_peers = initial_peers
        self._prompts = prompts_for(model, PROMPTS)
        self._expected: dict[tuple[int, int], list[int]] = {}

    async def run(self) -> None:
        from swarm_node.client import AsyncSwarmModel

        async with await AsyncSwarmModel.connect(
            model=self._model_path,
            initial_peers=self._initial_peers,
            wait=WAIT_S,
            threads=1,
            wire_codec="none",
            dtype="float32",
            quantize="none",
            prefix_cache=False,
        ) as model:
            tell("ready")
            while (order := await next_order()) is not None:
                if "learn" in order:
                    for which, prompt in enumerate(self._prompts):
                        answer = await model.generate_detailed(prompt, **options(order["learn"]))
                        self._expected[order["learn"], which] = list(answer.token_ids)
                    tell("learnt")
                else:
                    tell("cell", **await self.cell(model, **order))

    async def cell(
        self, model: Any, *, steps: int, restart: bool, seconds: float, limit: float
    ) -> dict[str, Any]:
        """Answers of ``steps`` tokens, one after another, for ``seconds`` or until one is complete, but for
        no more than ``limit``. ``restart``: the first failure in an answer throws it away."""
        began = time.monotonic()
        spared_s = finished_s = 0.0
        finished = attempts = repairs = wrong = longest = 0
        while (passed := time.monotonic() - began - spared_s) < (seconds if finished else limit):
            which = finished % len(self._prompts)
            attempts += 1
            made = 0
            failed = False
            async with model.stream(self._prompts[which], **options(steps)) as stream:
                waiting_since = time.monotonic()
                async for _ in stream:
                    made += 1
                    now = time.monotonic()
                    failed = progress_of(stream._run._session)[1] > 0
                    if restart and failed:
                        spared_s += now - waiting_since  # the repair, which this policy does not have
                        break
                    if now - began - spared_s > limit:
                        break
                    waiting_since = now
                else:
                    result = stream.result
                    finished += 1
                    finished_s = time.monotonic() - began - spared_s
                    repairs += result.repairs
                    wrong += list(result.token_ids) != self._expected[steps, which]
            longest = max(longest, made)
        return {
            "finished": finished,
            "attempts": attempts,
            "repairs": repairs,
            "wrong": wrong,
            "longest": longest,
            "seconds": round(finished_s or passed, 2),
            "steps_per_s": round(finished * steps / finished_s, 2) if finished else 0.0,
        }


def options(steps: int) -> dict[str, Any]:
    return {"max_new_tokens": steps, "ignore_eos": True, "speculate": "off"}


def measure_cells(**options: Any) -> None:
    """``options`` are those of ``FailureRatesClient``."""
    uvloop.run(FailureRatesClient(**options).run())
