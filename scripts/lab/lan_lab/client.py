"""The guest of the LAN laboratory: finds the swarm by itself and tells when each token comes.

    python -m scripts.lab.lan_lab.client MODEL

Each line on standard input is JSON, {"prompt": TEXT, "tokens": N}; the answer's tokens and its end are lines
of JSON on standard output, with times of ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from swarm_node.client import AsyncSwarmModel

WAIT_S = 120.0


def tell(event: str, **details: object) -> None:
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **details}) + "\n")
    sys.stdout.flush()


async def main() -> None:
    (model_name,) = sys.argv[1:]
    # In float32 on the way: an answer is then the same over any cut of the blocks, and can be compared.
    async with await AsyncSwarmModel.connect(
        model=model_name, wire_codec="none", wait=WAIT_S, prefix_cache=False
    ) as model:
        tell("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            options = {"max_new_tokens": order["tokens"], "ignore_eos": True, "speculate": "off"}
            async with model.stream(order["prompt"], **options) as stream:
                async for event in stream.events():
                    tell("token", token=event.token)
            result = stream.result
            tell(
                "answer",
                token_ids=list(result.token_ids),
                text=result.text,
                route=[[hop.peer_id, str(hop.span)] for hop in result.route.hops],
                repairs=result.repairs,
            )


if __name__ == "__main__":
    uvloop.run(main())
