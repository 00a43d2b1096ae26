"""What blocks that keep a state cost on each backend, and how far apart their results are.

Blocks of models' shapes with made-up weights and a narrow residual stream, so that little but the recurrence
is measured: 512 rows of one session, a row of one, and a row of each of eight. Milliseconds of processor time
a block, the best of some goes; and the largest difference to torch row by row, as a part of the largest
output.

scripts/study recurrences
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.tensors import FINAL_NORM, TensorInfo, block_tensors
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.types import Span

from ..lab.command_line import script_parser

HIDDEN, ROWS, SESSIONS, REPEATS = 32, 512, 8, 9
NORM = NormConfig(1e-6)
DELTA: dict[str, Any] = {"taps": 4, "rule": "delta", "norm": NORM, "norm_groups": 32, "norm_shared": True}
SHAPES = {
    "Qwen3.5-4B": RecurrenceConfig(32, 16, 128, 128, **DELTA),
    "Kimi Linear": RecurrenceConfig(32, 32, 128, 128, **DELTA, gate="sigmoid", decay="channel"),
    "Nemotron-H-8B": RecurrenceConfig(
        *(128, 8, 128, 64, 4, "plain", NORM, 8), gate_first=True, skip=True, conv_bias=True
    ),
}
WAYS: dict[str, dict[str, Any]] = {
    "torch, row by row": {"kernels": "torch", "deterministic": True},
    "torch": {"kernels": "torch"},
    "native": {},
}


def loaded(state: RecurrenceConfig, threads: int, options: dict[str, Any]) -> SpanBackend[Any]:
    config = ModelConfig(
        "made up", (BlockConfig(None, None, norm=NORM, state=state),), HIDDEN, 100, NORM, ROWS
    )
    shapes = {**block_tensors(config, 0), FINAL_NORM: (HIDDEN,)}
    manifest = {
        name: TensorInfo(name, shape, "F32", 4 * int(np.prod(shape))) for name, shape in shapes.items()
    }
    wanted = LoadOptions(dtype="float32", quantize="none", **options)
    return load_backend(random_checkpoint(config, manifest), Span(0, 1), wanted, threads=threads)


def milliseconds(compute: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        began = time.process_time()
        compute()
        taken.append(time.process_time() - began)
    return min(taken) * 1e3


def figures(model: SpanBackend[Any], x: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Milliseconds of a prompt, of a row, and of a row of each session; and the prompt's output."""
    memory = OwnMemory(model, "float32", ROWS + 1, SESSIONS)
    prompt = [memory.slice(0, ROWS)]
    out = model.forward(x, prompt, memory.pool)
    for session in range(1, SESSIONS):
        model.forward(x[:1], [memory.slice(0, 1, session=session)], memory.pool)
    one = [memory.slice(1, 1)]
    all_ = [memory.slice(1, 1, row=session, session=session) for session in range(SESSIONS)]
    feeds = ((x, prompt), (x[:1], one), (x[:SESSIONS], all_))
    return [milliseconds(partial(model.forward, *feed, memory.pool)) for feed in feeds], out


def main() -> int:
    parser = script_parser("study recurrences", __doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((ROWS, HIDDEN), np.float32)
    print(f"{'ms a block':34} {ROWS} rows  1 row  {SESSIONS} rows  difference")
    for name, state in SHAPES.items():
        exact: np.ndarray | None = None
        for way, options in WAYS.items():
            model = loaded(state, arguments.threads, options)
            if not model.kernels.startswith(way.split(",")[0]):
                continue
            times, out = figures(model, x)
            exact = out if exact is None else exact
            off = np.abs(out - exact).max() / np.abs(exact).max()
            print(
                f"{name:14} {way:19} {times[0]:8.1f} {times[1]:6.2f} {times[2]:7.2f}  {off:10.1e}", flush=True
            )
    return 0
