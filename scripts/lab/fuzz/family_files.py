"""Small models of every family, each written once, and recipes of what is wrong with one: a case, and changes
of its configuration and of its tensors. A recipe is JSON, so that a finding can be read."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from swarm_node.shards.families.model import NEUTRAL
from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.formats.gguf.config import KEYS
from tests.shards.families.cases import CASES

from .gguf_file import GGUFFile, encoded_value
from .mutation import INTERESTING_INTEGERS, INTERESTING_NUMBERS, any_value

Recipe = dict[str, Any]
MOST_CHANGES = 6
WORDS = (
    *("silu", "gelu", "gelu_pytorch_tanh", "relu2", "sigmoid", "softmax", "greedy", "group_limited_greedy"),
    *("full_attention", "sliding_attention", "chunked_attention", "dense", "sparse", "noaux_tc", "vision"),
    *("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional", "su", "none", "mrope"),
)
"""Texts that mean something in some configuration."""
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 1.0, "alpha": 20.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 0.5, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "beta_fast": 1.0, "beta_slow": 32.0},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.5] * 8},
    {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.5] * 7, "factor": 2.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"rope_type": "default", "partial_rotary_factor": 0.3},
    {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}},
    {"type": "linear", "factor": 2},
    {"rope_theta": 1e3},
)
ROPE_KEYS = (
    *("rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", "low_freq_factor"),
    *("high_freq_factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor", "alpha"),
    *("full_attention", "sliding_attention", "short_mscale", "long_mscale", "llama_4_scaling_beta"),
)
FILLS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 3e38, "tiny": 1e-40, "zero": 0.0, "big": 1e12}


class FamilyFiles:
    """Folders and GGUF files of cases, written when first asked for."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._known: dict[str, Path] = {}

    def hf(self, case: str) -> Path:
        from transformers.utils.logging import disable_progress_bar

        from tests.shards.families.models import saved

        disable_progress_bar()
        return self._written(f"{case}-hf", lambda path: saved(case, path))

    def gguf(self, case: str) -> Path:
        from tests.shards.families.gguf_files import write_gguf
        from tests.shards.families.models import small_model

        return self._written(f"{case}.gguf", lambda path: write_gguf(small_model(case), path))

    def _written(self, name: str, write: Callable[[Path], Any]) -> Path:
        path = self.folder / name
        if name not in self._known:
            write(path)
            self._known[name] = path
        return path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def family_files() -> FamilyFiles:
    """Those of this process."""
    return FamilyFiles()


def parsed(data: bytes) -> Recipe:
    """ValueError for what is no recipe."""
    recipe = json.loads(data)
    if not isinstance(recipe, dict) or recipe.get("case") not in CASES:
        raise ValueError("no recipe")
    return recipe


def encoded(recipe: Any) -> bytes:
    return json.dumps(recipe, default=repr).encode(errors="replace")


def mutation(
    change: Callable[[Random, str], list[Any]], cases: list[str]
) -> Callable[[Random, bytes], bytes]:
    """One change more or less, or another case."""

    def mutate(rng: Random, data: bytes) -> bytes:
        recipe = parsed(data)
        changes = recipe["changes"]
        if rng.random() < 0.4:
            recipe["case"] = rng.choice(cases)
            changes = []
        elif changes and rng.random() < 0.3:
            changes.pop(rng.randrange(len(changes)))
        if len(changes) < MOST_CHANGES:
            changes = [*changes, change(rng, recipe["case"])]
        return encoded({**recipe, "changes": changes})

    return mutate


def value_like(rng: Random, old: Any, share: float = 0.6) -> Any:
    """Another one: this ``share`` of them of the same type, and such as a model might have."""
    likely = rng.random() < share
    if likely and isinstance(old, bool):
        return not old
    if likely and isinstance(old, int):
        return rng.choice((old + 1, old - 1, old * 2, old // 2, old // 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 48))
    if likely and isinstance(old, float):
        return rng.choice((old * 2, old / 2, old * 30, old / 30, 0.0, 1.0, 0.25, -old))
    if likely and isinstance(old, str):
        return rng.choice(WORDS)
    if likely and isinstance(old, list) and old:
        at = rng.randrange(len(old))
        spoilt = [*old[:at], value_like(rng, old[at], share), *old[at + 1 :]]
        return rng.choice((spoilt, spoilt, old[1:], [*old, old[0]], old[::-1], [], old * 2, old[0]))
    if likely and isinstance(old, dict) and old:
        key = rng.choice([*old, *ROPE_KEYS])
        return rng.choice((*ROPES, {**old, key: value_like(rng, old.get(key), share)}))
    if likely:
        return rng.choice((True, False, 0, 1, 2, 3, 4, 5, 16, 0.5, 2.0, "", *WORDS[:4], [0], [1, 0, 1]))
    match rng.randrange(5):
        case 0:
            return rng.choice(INTERESTING_INTEGERS)
        case 1:
            return rng.choice(INTERESTING_NUMBERS)
        case 2:
            return rng.choice((*ROPES, ["full_attention"] * 2, ["sliding_attention"] * 3, [[0]], [{}], {}))
        case 3:
            return [rng.choice((0, 1, 2, -1, 10**30, "x", None, 0.5))] * rng.choice((1, 2, 3, 4, 5000))
        case _:
            return any_value(rng)


def config_change(rng: Random, case: str, likely: float = 0.6) -> list[Any]:
    """["set", key, value] or ["drop", key]; a dot in the key leads into an object. ``likely``: the share of
    values that a model might have."""
    document = json.loads((family_files().hf(case) / "config.json").read_text())
    row = FAMILIES[case.split("-")[0]]
    known = [*row.defaults, *row.aliases, *row.fixed, *document]
    key = rng.choice((*known, *known, *NEUTRAL, "rope_scaling", "rope_parameters", "rope_theta", "extra"))
    old = document.get(key, row.defaults.get(key))
    if key in ("rope_scaling", "rope_parameters") and rng.random() < 0.6:
        inner = rng.choice(ROPE_KEYS)
        return ["set", f"{key}.{inner}", value_like(rng, (old or {}).get(inner, 1.0), likely)]
    if rng.random() < 0.1:
        return ["drop", key]
    return ["set", key, value_like(rng, old, likely)]


def changed_config(document: dict[str, Any], changes: list[list[Any]]) -> dict[str, Any]:
    for change in changes:
        outer, _, inner = change[1].partition(".")
        if change[0] == "drop":
            document.pop(outer, None)
        elif change[0] == "set":
            there = document.get(outer)
            old = there if isinstance(there, dict) else {}
            document[outer] = {**old, inner: change[2]} if inner else change[2]
    return document


def gguf_change(rng: Random, case: str) -> list[Any]:
    """As ``config_change``, with a number that chooses the type of a value; or ["twice", key]."""
    file = GGUFFile.parse(family_files().gguf(case).read_bytes())
    arch = next(value[12:].decode() for key, value in file.keys if key == "general.architecture")
    row = FAMILIES[case.split("-")[0]].gguf
    own = [key for key, _ in file.keys]
    more = [
        *KEYS,
        *(row.keys if row else ()),
        *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.dimension_count"),
        *("rope.scaling.original_context_length", "rope.scaling.yarn_log_multiplier", "rope.freq_base"),
        *("attention.value_length", "attention.sliding_window_pattern", "rope.scale_linear", "extra"),
        *("attention.causal", "attention.clamp_kqv", "expert_group_count", "leading_dense_block_count"),
    ]
    key = rng.choice((*own, *own, *(f"{arch}.{name}" for name in more)))
    if rng.random() < 0.1:
        return [rng.choice(("drop", "twice")), key]
    text = rng.choice(WORDS)
    old = rng.choice((1, 4, 16, 64, 3, [2, 2, 2], [1, 0, 1], [2, 1, 2], 0.5, True, text))
    return ["set", key, value_like(rng, old), rng.randrange(4)]


def changed_gguf(file: GGUFFile, changes: list[list[Any]]) -> GGUFFile:
    for change in changes:
        others = [(key, value) for key, value in file.keys if key != change[1]]
        match change[0]:
            case "set":
                file.keys = [*others, (change[1], encoded_value(change[2], change[3]))]
            case "drop":
                file.keys = others
            case "twice":
                file.keys += [(key, value) for key, value in file.keys if key == change[1]]
    return file


def tensor_change(rng: Random, case: str) -> list[Any]:
    """What happens to one tensor, in files of both kinds: it is named by its place among them."""
    number = rng.randrange(10_000)
    match rng.choice(("lose", "name", "shape", "type", "move", "fill", "fill", "cut", "swap", "double")):
        case "shape":
            how = rng.choice(("turned", "flat", "one", "more", "less", "zero", "split", "huge"))
            return ["shape", number, how]
        case "type":
            named = rng.choice(("F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "U32"))
            return ["type", number, named, rng.choice((0, 1, 2, 3, 8, 12, 14, 24, 28, 30, 39, 99))]
        case "move":
            return ["move", number, rng.choice((-1, 1, -32, 32, -(2**40), 2**62, 4))]
        case "fill":
            return ["fill", number, rng.choice((*FILLS,)), rng.choice((1, 3, 10**6))]
        case "cut":
            return ["cut", number, rng.choice((1, 100, 4096, -1, -77))]
        case kind:
            return [kind, number, rng.randrange(10_000)]


def _reshaped(shape: list[int], how: str) -> list[int]:
    match how:
        case "turned":
            return shape[::-1]
        case "flat":
            return [int(np.prod(shape))]
        case "one":
            return [1, *shape]
        case "more":
            return [shape[0] + 1, *shape[1:]]
        case "less":
            return [shape[0] - 1, *shape[1:]]
        case "zero":
            return [0, *shape]
        case "split":
            return [2, shape[0] // 2, *shape[1:]] if shape[0] % 2 == 0 else shape
        case _:
            return [2**40, *shape]


def changed_safetensors(data: bytes, changes: list[list[Any]]) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    body, cut = bytearray(data[8 + length :]), 0
    for kind, number, *how in changes:
        names = sorted(name for name in header if name != "__metadata__")
        if not names or kind == "cut":
            cut = how[0] if kind == "cut" else cut
            continue
        name = names[number % len(names)]
        entry, other = header[name], names[how[0] % len(names)] if isinstance(how[0], int) else name
        match kind:
            case "lose":
                del header[name]
            case "name":
                header[f"{name}.more"] = header.pop(name)
            case "shape":
                entry["shape"] = _reshaped(entry["shape"] or [1], how[0])
            case "type":
                entry["dtype"] = how[0]
            case "move":
                entry["data_offsets"] = [at + how[0] for at in entry["data_offsets"]]
            case "swap":
                header[name], header[other] = header[other], entry
            case "double":
                header[f"{name}.twin"] = dict(entry)
            case "fill":
                _fill(body, entry["data_offsets"][0], entry["data_offsets"][1], how)
    text = json.dumps(header).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(body)
    return whole[: len(whole) - cut] if cut >= 0 else whole + bytes(-cut)


def changed_gguf_tensors(file: GGUFFile, changes: list[list[Any]]) -> bytes:
    data, cut = bytearray(file.data), 0
    for kind, number, *how in changes:
        if not file.tensors or kind == "cut":
            cut = how[0] if kind == "cut" else cut
            continue
        at = number % len(file.tensors)
        name, dims, type_, offset = file.tensors[at]
        match kind:
            case "lose":
                del file.tensors[at]
            case "name":
                file.tensors[at] = (f"{name}.more", dims, type_, offset)
            case "shape":
                file.tensors[at] = (name, _reshaped(dims, how[0]), type_, offset)
            case "type":
                file.tensors[at] = (name, dims, how[1], offset)
            case "move":
                file.tensors[at] = (name, dims, type_, offset + how[0])
            case "swap":
                other = how[0] % len(file.tensors)
                file.tensors[at] = (file.tensors[other][0], dims, type_, offset)
            case "double":
                file.tensors.append(file.tensors[at])
            case "fill":
                _fill(data, offset, offset + 4 * int(np.prod(dims, dtype=object) % 2**31), how)
    file.data = bytes(data)
    whole = file.encoded()
    return whole[: len(whole) - cut] if cut >= 0 else whole + bytes(-cut)


def _fill(data: bytearray, start: int, end: int, how: list[Any]) -> None:
    """Every so many numbers of a tensor. A factor does not make them all alike: the norm of equal numbers is
    nothing but rounding."""
    if 0 <= start < end <= len(data) and (end - start) % 4 == 0:
        values, by = np.frombuffer(data, np.float32, (end - start) // 4, start), np.float32(FILLS[how[0]])
        with np.errstate(all="ignore"):
            values[:: how[1]] = values[:: how[1]] * by if np.isfinite(by) else by
