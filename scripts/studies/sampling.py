"""What choosing a token costs, by vocabulary and parameters: processor time, µs a token.

scripts/study sampling
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from swarm_node.client.decoding.sampling import Sampler, SamplingParams

from ..lab.command_line import script_parser

VOCABULARIES = (49_152, 128_256, 262_144)
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top-k 40": {"temperature": 1.0, "top_k": 40},
    "top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "top-p, flat": {"temperature": 3.0, "top_p": 0.95},
    "min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "5 logprobs": {"logprobs": 5},
    "repetition": {"temperature": 0.7, "repetition_penalty": 1.1},
}
ROWS, REPEATS = 8, 15


def microseconds(rows: np.ndarray, options: dict[str, Any]) -> float:
    """The median of REPEATS goes over ``rows`` (ROWS, vocab)."""
    sampler = Sampler(SamplingParams(seed=1, **options), prompt=range(100))
    times = []
    for _ in range(1 + REPEATS):
        began = time.process_time()
        for logits in rows:
            sampler.choose(logits)
        times.append((time.process_time() - began) / ROWS * 1e6)
    return median(times[1:])


def main() -> int:
    script_parser("study sampling", __doc__).parse_args()
    print(f"{'':12}", *(f"{vocab:>8}" for vocab in VOCABULARIES))
    for name, options in WAYS.items():
        print(f"{name:12}", end="")
        for vocab in VOCABULARIES:
            rows = np.random.default_rng(vocab).standard_normal((ROWS, vocab), np.float32) * 3
            rows[:, :30] += 9  # a few tokens are likely
            print(f" {microseconds(rows, options):8.0f}", end="", flush=True)
        print()
    return 0
