"""What a token costs in one block of a model, by the context before it: made-up weights of the real shapes.

All blocks of one kind cost the same, so one block of each kind is measured. Keys and values of a long context
are copies of a short one's. Contexts are measured in turns, and the quickest run of each counts, since other
work of the machine disturbs them.

scripts/study context_cost llama3.2-1b qwen3-8b qwen3-30b-a3b
scripts/study context_cost qwen3.5-35b-a3b --kernels torch --contexts 256 8192
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from swarm_node.node.cli.models.catalogue import named
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span

from ..lab.command_line import count, script_parser

PROMPT, RUNS = 256, 15


def milliseconds(model: SpanBackend[Any], contexts: list[int]) -> list[float]:
    """Of a token in the block after so many tokens."""
    memory = OwnMemory(model, "float16", max(contexts) + 1, shared=True)
    prompt = np.random.default_rng(0).standard_normal((PROMPT, model.config.row_width(0)), np.float32)
    model.forward(prompt, [memory.slice(0, PROMPT)], memory.pool)
    memory.repeat(PROMPT // PAGE_TOKENS)
    quickest = [float("inf")] * len(contexts)
    for _ in range(RUNS + 1):  # the first brings kernels and pages
        for number, context in enumerate(contexts):
            began = time.perf_counter()
            model.forward(prompt[:1], [memory.slice(context, 1)], memory.pool)
            quickest[number] = min(quickest[number], 1e3 * (time.perf_counter() - began))
    return quickest


def main() -> int:
    parser = script_parser("study context_cost", __doc__)
    parser.add_argument("models", nargs="+", metavar="NAME", help="of the catalogue")
    parser.add_argument("--contexts", type=count, nargs="+", default=[256, 512, 2048, 8192, 32000])
    parser.add_argument("--kernels", default="native")
    parser.add_argument("--threads", type=count, default=1)
    arguments = parser.parse_args()
    try:
        chosen = [named(name) for name in arguments.models]
    except UsageError as error:
        parser.error(f"{error.message}. {error.hint}")
    print(f"{'ms a token and block':34}", *(f"{context:>8}" for context in arguments.contexts))
    for files in chosen:
        config = files.model.config
        for kind in dict.fromkeys(config.blocks):
            if kind.kv_of is not None or kind.index_of is not None:
                continue  # computed beside another block alone
            block = config.blocks.index(kind)
            made = random_checkpoint(config, files.manifest(), [block])
            model = load_backend(
                made, Span(0, 1), LoadOptions(kernels=arguments.kernels), threads=arguments.threads
            )
            label = f"{files.model.name}, block {block}"
            print(
                f"{label:34}", *(f"{ms:8.2f}" for ms in milliseconds(model, arguments.contexts)), flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
