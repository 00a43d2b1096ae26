"""A client in a process of its own that answers an order's ``token_ids`` with tokens of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scripts.lab.processes.parent import next_order, tell
from swarm_node.client import AsyncSwarmModel


def answer_on_order(*, model_path: str, initial_peers: Sequence[str]) -> None:
    asyncio.run(_answer_on_order(model_path, initial_peers))


async def _answer_on_order(model_path: str, initial_peers: Sequence[str]) -> None:
    async with await AsyncSwarmModel.connect(
        model=model_path,
        initial_peers=list(initial_peers),
        wire_codec="none",
        dtype="float32",
        threads=1,
        wait=20,
    ) as model:
        tell("ready")
        while (order := await next_order()) is not None:
            answer = await model.generate_detailed(order["token_ids"], max_new_tokens=12, ignore_eos=True)
            tell("answer", token_ids=list(answer.token_ids), repairs=answer.repairs)
