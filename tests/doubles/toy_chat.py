"""``swarm-node chat`` with the toy model and a swarm in the same process: for tests in a pseudo-terminal.

toy_chat.py ANSWER DELAY editor|no-editor [OPTION]...

ANSWER: what the model says to everything; with <think> in it, its template knows that. DELAY: seconds a step.
"""

from __future__ import annotations

import sys
from typing import Any

from swarm_node.client import SwarmModel
from swarm_node.client.background import BackgroundLoop
from swarm_node.node.cli import main
from tests.doubles.fake_swarm import FakeSwarm, ScriptedHead
from tests.doubles.toy_model import EOS, ToyTokenizer

TIMES = 20
"""Answers that there are."""


def connect(**options: Any) -> SwarmModel:
    loop = BackgroundLoop()

    async def start() -> SwarmModel:
        swarm = await FakeSwarm(a="0-2", b="3-5").start()
        for node in swarm.nodes.values():
            node.behaviour.step_delay_s = float(sys.argv[2])
        return SwarmModel(loop, swarm.client(ScriptedHead([*sys.argv[1].encode(), EOS] * TIMES)))

    return loop.run(start())


if __name__ == "__main__":
    if sys.argv[3] == "no-editor":
        sys.modules["prompt_toolkit"] = None  # type: ignore[assignment]
    if "<think>" in sys.argv[1]:
        ToyTokenizer.chat_template += "<think>"
    SwarmModel.connect = connect  # type: ignore[method-assign,assignment]
    words = [
        "chat",
        "--model",
        "toy",
        "--initial-peers",
        "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGvzPLEyJZ1rEcBR",
        "--speculate",
        "off",
    ]
    sys.exit(main.main([*words, *sys.argv[4:]]))
