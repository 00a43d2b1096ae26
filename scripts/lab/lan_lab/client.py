"""The guest of the LAN laboratory: finds the swarm by itself and tells when each token comes.

An order has a ``prompt`` and a number of ``tokens``. Times are of ``time.monotonic``, which all processes of
a machine share.
"""

from __future__ import annotations

import time

import uvloop

from swarm_node.client import AsyncSwarmModel

from ..processes.parent import next_order, tell

WAIT_S = 120.0


def answer_on_order(*, model_name: str) -> None:
    uvloop.run(_answer_on_order(model_name))


async def _answer_on_order(model_name: str) -> None:
    # In float32 on the way: an answer is then the same over any cut of the blocks, and can be compared.
    async with await AsyncSwarmModel.connect(
        model=model_name, wire_codec="none", wait=WAIT_S, prefix_cache=False
    ) as model:
        tell("ready")
        while (order := await next_order()) is not None:
            options = {"max_new_tokens": order["tokens"], "ignore_eos": True, "speculate": "off"}
            async with model.stream(order["prompt"], **options) as stream:
                async for event in stream.events():
                    tell("token", at=time.monotonic(), token=event.token)
            result = stream.result
            tell(
                "answer",
                at=time.monotonic(),
                token_ids=list(result.token_ids),
                text=result.text,
                route=[[hop.peer_id, str(hop.span)] for hop in result.route.hops],
                repairs=result.repairs,
            )
