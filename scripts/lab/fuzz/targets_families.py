"""Families of models: configurations, metadata of GGUF files and tensors that no model has, and what is then
computed. Both executors have to agree, and transformers where it takes the same configuration."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from swarm_node.shards.checkpoint.checkpoint import Checkpoint, directory_config
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.tensors import EMBEDDING, TensorInfo, model_tensors
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.block_loading import bytes_in_file
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.errors import ModelError, SwarmError
from swarm_node.swarm.types import Span
from tests.shards.families.cases import CASES, GGUF_CASES

from .family_files import (
    changed_config,
    changed_gguf,
    changed_gguf_tensors,
    changed_safetensors,
    config_change,
    encoded,
    family_files,
    gguf_change,
    mutation,
    parsed,
    tensor_change,
)
from .gguf_file import GGUFFile
from .target import Prepared, Target

ALL = list(CASES)
WITH_EXPERTS = [case for case in ALL if any("expert" in key or key.startswith("moe_") for key in CASES[case])]
CHUNKS = (1, 7, 3, 1)
"""Tokens of the slices that a text is fed in: also beyond small windows."""
MOST_VALUES = 1 << 21
"""Weights of a model that is computed."""
MOST_BLOCKS = 6
MEMORY = 600 << 20
"""Bytes that one input may take, in what this process has already."""
CLOSE, LOOSE = 1e-4, 30.0
"""Results may differ by this part of the largest, and by so many times what they change with the last bit of
the input."""
HUGE = 1e15
"""Numbers beyond: products of them are infinite in one order of sums, and not in another."""
PLAIN = {"dtype": "float32", "quantize": "none"}
FILES = ("/now", "model.safetensors", "tensor model.", "tensor lm_head.")
"""What messages call the files of a workspace; or they name the tensor that has wrong numbers."""


class DisagreementError(Exception):
    """Two ways to compute the same differ."""


@contextmanager
def bounded_memory(nbytes: int = MEMORY) -> Iterator[None]:
    """MemoryError in place of more, where the system can bound a process's memory."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        used = next(
            int(line.split()[1]) << 10
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmData")
        )
    except (ImportError, OSError, StopIteration):
        yield
        return
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (used + nbytes, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def read(error: SwarmError) -> SwarmError:
    """``error``, if a person can read it, and finds the file."""
    text = str(error)
    if isinstance(error, ModelError) and not any(name in text for name in FILES):
        raise DisagreementError(f"no file is named: {text!a:.900}")
    if len(text.splitlines()) > 2 or len(text) > 700 or not text.replace("\n", "").isprintable():
        raise DisagreementError(f"not a readable line: {text!a:.900}")
    return error


@contextmanager
def readable() -> Iterator[None]:
    try:
        yield
    except SwarmError as error:
        raise read(error) from None


def is_small(config: ModelConfig) -> bool:
    if config.n_blocks > MOST_BLOCKS or config.row_width(0) * config.vocab_size > MOST_VALUES:
        return False
    experts = max((block.experts.count for block in config.blocks if block.experts), default=0)
    return experts <= 64 and sum(map(math.prod, model_tensors(config).values())) < MOST_VALUES


def fed(checkpoint: Checkpoint, x: np.ndarray, kernels: str) -> np.ndarray:
    """``x`` (T, hidden) through all blocks."""
    return through(loaded(checkpoint, kernels), x)


def loaded(checkpoint: Checkpoint, kernels: str, memory: int | None = None) -> SpanBackend[Any]:
    span = Span(0, checkpoint.config.n_blocks)
    return load_backend(checkpoint, span, LoadOptions(kernels=kernels, **PLAIN), memory=memory)


def through(model: SpanBackend[Any], x: np.ndarray) -> np.ndarray:
    """In CHUNKS."""
    memory = OwnMemory(model, "float32", len(x))
    ropes = [block.rope for block in model.config.blocks]
    is_long = any(rope and len(x) > rope.original_max_position_embeddings for rope in ropes)
    out, at = [], 0
    for rows in np.split(x, np.cumsum(CHUNKS)[:-1]):
        if len(rows):
            part = memory.slice(at, len(rows), long_context=is_long)
            out.append(model.forward(rows, [part], memory.pool))
        at += len(rows)
    return np.concatenate(out)


def tokens(config: ModelConfig) -> np.ndarray:
    count = min(sum(CHUNKS), config.max_position_embeddings)
    return np.arange(count) * 7 % config.vocab_size


def check_close(what: str, ours: np.ndarray, theirs: np.ndarray, moved: np.ndarray) -> str:
    """``moved``: theirs for an input that differs in the last bits."""
    with np.errstate(all="ignore"):
        largest = np.abs(np.concatenate([ours, theirs, moved])).max()
        if not (finite := np.isfinite(theirs).all() and np.isfinite(moved).all()) or largest > HUGE:
            if finite and largest < HUGE and not np.isfinite(ours).all():
                raise DisagreementError(f"{what}: only one is finite, the largest is {largest:.3g}")
            return "not finite"
        allowed = CLOSE * largest + LOOSE * np.abs(moved - theirs).max()
        error = np.abs(ours - theirs).max()
    if not error <= allowed:
        raise DisagreementError(f"{what} differ by {error:.3g} of {largest:.3g}, at most {allowed:.3g}")
    return "finite"


def computed(checkpoint: Checkpoint) -> str:
    """Through both executors."""
    config = checkpoint.config
    if not is_small(config):
        return "large"
    ids = tokens(config)
    client = None
    if checkpoint.has(EMBEDDING):
        client = load_client_model(checkpoint, LoadOptions(**PLAIN))
        x = client.embed(ids)
    else:
        x = np.random.default_rng(0).standard_normal((len(ids), config.row_width(0)), np.float32)
    with np.errstate(all="ignore"):
        native, torch = (fed(checkpoint, x, kernels) for kernels in ("native", "torch"))
        signs = np.random.default_rng(1).choice(
            np.float32([-1, 1]), x.shape
        )  # norms take a common factor out
        moved = fed(checkpoint, x * (1 + signs * np.float32(2**-21)), "torch")
        found = check_close("native and torch", native, torch, moved)
        if client is not None:
            client.logits(native)
    return found


def made_up(config: ModelConfig) -> Checkpoint:
    """Blocks with random weights."""
    manifest = {
        name: TensorInfo(name, shape, "F32", 4 * math.prod(shape))
        for name, shape in model_tensors(config).items()
    }
    return random_checkpoint(config, manifest, range(config.n_blocks))


class Workspace:
    """A folder and a GGUF file that are written anew for each input."""

    def __init__(self) -> None:
        files = family_files()
        self.files = files
        self.folder = files.folder / "now"
        self.folder.mkdir(exist_ok=True)
        self.gguf = files.folder / "now.gguf"

    def write(self, config: dict[str, Any] | None, weights: bytes | Path) -> Path:
        """Of a HuggingFace folder."""
        (self.folder / "config.json").write_text(json.dumps(config))
        path = self.folder / "model.safetensors"
        path.unlink(missing_ok=True)
        if isinstance(weights, Path):
            os.link(weights, path)
        else:
            path.write_bytes(weights)
        return self.folder

    def close(self) -> None:
        self.files.close()
        family_files.cache_clear()


def run_config(space: Workspace, data: bytes) -> str:
    recipe = parsed(data)
    folder = space.files.hf(recipe["case"])
    config = changed_config(json.loads((folder / "config.json").read_text()), recipe["changes"])
    path = space.write(config, folder / "model.safetensors")
    with bounded_memory(), readable():
        found = directory_config(path)
        try:
            with open_checkpoint(str(path)) as checkpoint:
                return f"whole, {computed(checkpoint)}"
        except ModelError as error:
            read(error)  # other sizes than the tensors have
        return f"made up, {computed(made_up(found))}" if is_small(found) else "large"


def run_gguf(space: Workspace, data: bytes) -> str:
    recipe = parsed(data)
    file = GGUFFile.parse(space.files.gguf(recipe["case"]).read_bytes())
    space.gguf.unlink(missing_ok=True)
    space.gguf.write_bytes(changed_gguf(file, recipe["changes"]).encoded())
    with bounded_memory(), readable(), open_checkpoint(str(space.gguf)) as checkpoint:
        return computed(checkpoint)


def run_tensors(space: Workspace, data: bytes, is_gguf: bool = False) -> str:
    recipe = parsed(data)
    if is_gguf:
        file = GGUFFile.parse(space.files.gguf(recipe["case"]).read_bytes())
        space.gguf.unlink(missing_ok=True)
        space.gguf.write_bytes(changed_gguf_tensors(file, recipe["changes"]))
        path = space.gguf
    else:
        folder = space.files.hf(recipe["case"])
        weights = changed_safetensors((folder / "model.safetensors").read_bytes(), recipe["changes"])
        path = space.write(json.loads((folder / "config.json").read_text()), weights)
    with bounded_memory(), readable(), open_checkpoint(str(path)) as checkpoint:
        return computed(checkpoint)


def run_oracle(space: Workspace, data: bytes) -> str:
    """With what transformers makes of the same configuration."""
    import torch
    import transformers

    from tests.shards.families.models import randomise

    recipe = parsed(data)
    config = changed_config(
        json.loads((space.files.hf(recipe["case"]) / "config.json").read_text()), recipe["changes"]
    )
    path = space.write(config, b"")
    with readable():
        found = directory_config(path)
    if not is_small(found) or _largest(config) > 1 << 16:
        return "large"
    try:
        torch.manual_seed(0)
        theirs = transformers.AutoConfig.from_pretrained(path)
        model = randomise(
            transformers.AutoModelForCausalLM.from_config(
                theirs, attn_implementation="eager", experts_implementation="eager"
            )
        )
        ids = torch.from_numpy(tokens(found))[None]
        with torch.no_grad():
            plain = model(ids).logits[0].numpy()
            model.save_pretrained(path)
            exact = model.double()(ids).logits[0].float().numpy()
    except Exception as error:  # noqa: BLE001  whatever transformers raises for what it does not take
        return f"theirs: {type(error).__name__} {error}"
    (path / "config.json").write_text(json.dumps(config))
    with readable(), open_checkpoint(str(path)) as checkpoint:
        client = load_client_model(checkpoint, LoadOptions(**PLAIN))
        with np.errstate(all="ignore"):
            ours = client.logits(fed(checkpoint, client.embed(tokens(found)), "native"))
            return check_close("our logits and transformers'", ours, exact, plain)


def _largest(tree: Any) -> int:
    if isinstance(tree, dict | list):
        return max(map(_largest, tree.values() if isinstance(tree, dict) else tree), default=0)
    return abs(tree) if isinstance(tree, int) else 0


def run_experts(space: Workspace, data: bytes) -> str:
    """Experts stay in the file, which somebody spoils while they are read."""
    recipe = parsed(data)
    folder = space.files.hf(recipe["case"])
    whole = (folder / "model.safetensors").read_bytes()
    path = space.write(json.loads((folder / "config.json").read_text()), whole)
    weights = path / "model.safetensors"
    with bounded_memory(), readable(), open_checkpoint(str(path)) as checkpoint:
        x = np.random.default_rng(0).standard_normal(
            (sum(CHUNKS), checkpoint.config.row_width(0)), np.float32
        )
        want = fed(checkpoint, x, "native")
        spoil = threading.Thread(target=_spoil, args=(weights, recipe["changes"]))
        memory = bytes_in_file(checkpoint, Span(0, checkpoint.config.n_blocks)) - 1
        model = loaded(checkpoint, "native", memory)
        spoil.start()
        try:
            got = through(model, x)
        finally:
            spoil.join()
        if not np.array_equal(want, got):
            raise DisagreementError("experts of a file that was spoilt gave other rows, and no error")
    return "read before"


def _spoil(path: Path, changes: list[list[Any]]) -> None:
    for kind, number, *_ in changes:
        size = path.stat().st_size
        at = number * 7919 % max(size, 1)
        match kind:
            case "cut":
                os.truncate(path, at)
            case "fill":
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(b"\xff" * 4096)
            case "lose":
                path.unlink()
                return
            case "swap":
                path.rename(path.with_name("old"))
                path.write_bytes(b"\0" * size)
            case _:
                pass


def named(run: Callable[[Workspace, bytes], str], space: Workspace, data: bytes) -> str:
    """A disagreement begins with what it is about, so that each is reported once."""
    try:
        return run(space, data)
    except DisagreementError as error:
        recipe = parsed(data)
        about = " ".join([recipe["case"].split("-")[0], *(str(each[1]) for each in recipe["changes"][-1:])])
        raise DisagreementError(f"{about}: {error}") from None


def _target(
    name: str,
    run: Callable[[Workspace, bytes], str],
    change: Callable[..., list[Any]],
    cases: list[str],
    slow_s: float = 5.0,
) -> Target:
    def prepare() -> Prepared:
        space, seed = Workspace(), encoded({"case": cases[0], "changes": []})
        with suppress(SwarmError):
            run(space, seed)  # imports torch and transformers
        return Prepared([seed], partial(named, run, space), space.close)

    return Target(f"family-{name}", prepare, mutate=mutation(change, cases), largest=1 << 20, slow_s=slow_s)


TARGETS = [
    _target("config", run_config, config_change, ALL),
    _target("gguf", run_gguf, gguf_change, GGUF_CASES),
    _target("tensors", run_tensors, tensor_change, ALL),
    _target("gguf-tensors", partial(run_tensors, is_gguf=True), tensor_change, GGUF_CASES),
    _target("experts", run_experts, tensor_change, WITH_EXPERTS),
    _target("oracle", run_oracle, partial(config_change, likely=0.95), ALL),
]
