"""A client in a process of its own that answers whenever a line comes on its standard input.

python -m tests.swarms.asked_client MODEL INITIAL_PEER...
"""

from __future__ import annotations

import asyncio
import json
import sys

from swarm_node.client import AsyncSwarmModel


def tell(event: str, **details: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


async def answer(model_path: str, *initial_peers: str) -> None:
    async with await AsyncSwarmModel.connect(
        model=model_path,
        initial_peers=list(initial_peers),
        wire_codec="none",
        dtype="float32",
        threads=1,
        wait=20,
    ) as model:
        tell("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            ids = [int(word) for word in line.split()]
            made = await model.generate_detailed(ids, max_new_tokens=12, ignore_eos=True)
            tell("answer", token_ids=list(made.token_ids), repairs=made.repairs)


def main(words: list[str]) -> int:
    asyncio.run(answer(*words))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
