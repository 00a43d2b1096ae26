"""Checkpoints of every quantizer: settings and tensors that no model has, and what is then computed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span
from tests.shards.formats.quantized.writers import QUANTIZERS, quantize_directory

from .family_files import changed_safetensors, encoded, mutation, parsed, tensor_change, value_like
from .target import Prepared, Target
from .targets_families import Workspace, bounded_memory, computed, named, readable

CASE = "llama"


def change(rng: Random, case: str) -> list[Any]:
    """As ``tensor_change``; or ["set", numbers that lead to a value of the settings, random seed]."""
    if rng.random() < 0.6:
        return tensor_change(rng, case)
    return ["set", [rng.randrange(100) for _ in range(4)], rng.randrange(10**9)]


def changed_settings(settings: Any, path: list[int], seed: int) -> Any:
    """With another value at the end of ``path``, whose numbers choose among keys."""
    if not isinstance(settings, dict) or not settings or not path:
        return json.loads(encoded(value_like(Random(seed), settings)))
    key = sorted(settings)[path[0] % len(settings)]
    return {**settings, key: changed_settings(settings[key], path[1:], seed)}


def run(space: Workspace, data: bytes) -> str:
    recipe = parsed(data)
    name = recipe["quantizer"]
    folder = _quantized(space, name)
    config = json.loads((folder / "config.json").read_text())
    of_settings = [each for each in recipe["changes"] if each[0] == "set"]
    for _, path, seed in of_settings:
        config["quantization_config"] = changed_settings(config["quantization_config"], path, seed)
    others = [each for each in recipe["changes"] if each[0] != "set"]
    weights = changed_safetensors((folder / "model.safetensors").read_bytes(), others)
    where = space.write(config, weights)
    with bounded_memory(), readable(), open_checkpoint(str(where)) as checkpoint:
        load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), LoadOptions(kernels="native"))
        return computed(checkpoint)


def _quantized(space: Workspace, name: str) -> Path:
    folder = space.files.folder / f"quantized-{name}"
    if not folder.exists():
        quantize_directory(space.files.hf(CASE), folder, QUANTIZERS[name])
    return folder


def prepare() -> Prepared:
    space = Workspace()
    seeds = [encoded({"case": CASE, "quantizer": name, "changes": []}) for name in QUANTIZERS]
    run(space, seeds[0])  # imports torch and transformers
    return Prepared(seeds, partial(named, run, space), space.close)


TARGETS = [
    Target("family-quantized", prepare, mutate=mutation(change, [CASE]), largest=1 << 20, slow_s=5.0),
]
