"""What blocks that keep a state cost: in C, and on torch in chunks and row by row."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig, ShortConvConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.qtypes import row_bytes
from swarm_node.shards.formats.tensors import FINAL_NORM, TensorInfo, block_tensors
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.types import Span

from ..lab.command_line import script_parser

RMS = NormConfig(1e-6)
SHAPES: dict[str, tuple[int, RecurrenceConfig | ShortConvConfig]] = {
    "qwen3.5-4b": (
        2560,
        RecurrenceConfig(32, 16, 128, 128, 4, "delta", RMS, norm_groups=32, norm_shared=True),
    ),
    "kimi-linear-48b": (
        2304,
        RecurrenceConfig(
            *(32, 32, 128, 128, 4, "delta", RMS),
            norm_groups=32,
            norm_shared=True,
            gate="sigmoid",
            gate_rank=128,
            decay="channel",
            decay_rank=128,
        ),
    ),
    "nemotron-h-8b": (
        4096,
        RecurrenceConfig(
            *(128, 8, 128, 64, 4, "plain", RMS), norm_groups=8, gate_first=True, skip=True, conv_bias=True
        ),
    ),
    "lfm2-1.2b": (2048, ShortConvConfig(2048, 3)),
}
"""Hidden size, and what keeps the state: the blocks have no MLP here."""
WAYS = {
    "C": LoadOptions(kernels="native"),
    "torch, chunks": LoadOptions(kernels="torch", dtype="float32"),
    "torch, row by row": LoadOptions(kernels="torch", dtype="float32", deterministic=True),
}
DESCRIPTION = """\
Makes blocks of a model's shape with random weights and measures a step of one token, behind a
prompt, and the prompt. Figures are of one block: medians, the least in brackets.
"""


def main() -> int:
    parser = script_parser("study states", DESCRIPTION)
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--way", nargs="*", choices=WAYS, default=[*WAYS])
    parser.add_argument("--qtype", default="Q4_K", help="of the matrices (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=4, help="gone through in turn (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each figure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON objects instead of lines")
    options = parser.parse_args()
    for shape in options.shape:
        checkpoint = checkpoint_of(*SHAPES[shape], options.blocks, options.qtype)
        for way in options.way:
            found = measure(checkpoint, WAYS[way], options.threads, options.prompt, options.seconds)
            if options.json:
                print(json.dumps({"shape": shape, "way": way, **found}), flush=True)
            else:
                token, prompt = found["token_us"], found["prompt_ms"]
                print(
                    f"{shape:16} {way:18} token {token[0]:8.0f} us ({token[1]:.0f})   "
                    f"prompt {prompt[0]:8.1f} ms ({prompt[1]:.1f})",
                    flush=True,
                )
    return 0


def checkpoint_of(
    hidden: int, state: RecurrenceConfig | ShortConvConfig, blocks: int, qtype: str
) -> Checkpoint:
    """Matrices are of type ``qtype`` where their columns are whole groups of 256."""
    config = ModelConfig(
        "made up", (BlockConfig(None, None, norm=RMS, state=state),) * blocks, hidden, 100, RMS, 1 << 20
    )
    shapes: dict[str, tuple[int, ...]] = {FINAL_NORM: (hidden,)}
    for number in range(blocks):
        shapes |= block_tensors(config, number)
    manifest = {}
    for name, shape in shapes.items():
        held = "F32" if len(shape) == 1 or shape[-1] % 256 else qtype
        rows = 1 if len(shape) == 1 else shape[0]
        manifest[name] = TensorInfo(name, shape, held, rows * row_bytes(held, shape[-1]))
    return random_checkpoint(config, manifest, range(blocks))


def measure(
    checkpoint: Checkpoint, options: LoadOptions, threads: int, prompt: int, seconds: float
) -> dict[str, Any]:
    """``token_us`` and ``prompt_ms``: [median, least] of one block."""
    blocks = checkpoint.config.n_blocks
    model = load_backend(checkpoint, Span(0, blocks), options, threads=threads)
    memory = OwnMemory(model, "float32", prompt + MOST_RUNS)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((prompt, checkpoint.config.hidden_size), np.float32)
    at = prompt

    def read() -> None:
        model.forward(x, [memory.slice(0, prompt)], memory.pool)

    def step() -> None:
        nonlocal at
        model.forward(x[:1], [memory.slice(at, 1)], memory.pool)
        at += 1

    read()
    tokens = _times(step, seconds)
    prompts = _times(read, seconds)
    return {
        "kernels": model.kernels,
        "token_us": [1e6 * each / blocks for each in (statistics.median(tokens), min(tokens))],
        "prompt_ms": [1e3 * each / blocks for each in (statistics.median(prompts), min(prompts))],
    }


MOST_RUNS = 5000


def _times(run: Callable[[], None], seconds: float) -> list[float]:
    """Of three runs at least, after one that does not count."""
    run()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - began < seconds and len(found) < MOST_RUNS - 1):
        before = time.perf_counter()
        run()
        found.append(time.perf_counter() - before)
    return found
