"""Steps for an engine, as a test wants them."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns

from swarm_node.node.engine.engine import Engine
from swarm_node.node.engine.jobs import StepDone, StepJob
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.protocol.branches import rows_of
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.types import Span
from tests.swarm.codecs.codec_cases import codec_of

ALL = Span(0, 4)


class Driver:
    """Submits steps and waits for their outcomes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def submit(
        self,
        sequence,
        x,
        position,
        *,
        step=1,
        want=Want.ALL,
        payload=None,
        tokens=None,
        deadline_ns=0,
        branches=(),
        guess=0,
    ):
        """``x``: the step's rows, and behind them those of its branches; the last ``guess`` are guesses."""
        future = asyncio.get_running_loop().create_future()
        self.engine.submit(
            StepJob(
                sequence=sequence,
                step=step,
                position=position,
                tokens=tokens or len(x) - rows_of(branches),
                want=want,
                payload=sequence.codec.encode(x) if payload is None else payload,
                arrived_ns=perf_counter_ns(),
                done=lambda _, outcome: future.set_result(outcome),
                deadline_ns=deadline_ns,
                branches=branches,
                guess=guess,
            )
        )
        return future

    async def rows(self, *args, **more):
        outcome = await self.submit(*args, **more)
        assert isinstance(outcome, StepDone), outcome
        return NONE.decode(outcome.payload, outcome.rows, 64)

    def sequence(self, tokens=256, span=ALL, codec="none", owner="peer", **more):
        return self.engine.open_sequence(owner, span, tokens, codec_of(codec, 64), NONE, **more)
