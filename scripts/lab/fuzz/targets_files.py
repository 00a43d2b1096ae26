"""Files of models: they come from peers, and from anywhere."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.hf.safetensors_reader import read_index
from swarm_node.shards.pieces.digest import gguf_names
from swarm_node.shards.pieces.manifest import PieceFile, PieceManifest
from swarm_node.swarm.errors import CheckpointError

from ..tiny_model import write_tiny_model
from .gguf_file import GGUFFile, encoded_value
from .mutation import havoc, json_tree, msgpack_tree
from .target import Prepared, Target

MOST_TENSOR_BYTES = 1 << 20
"""Of a tensor that is read after a file was opened: readers map files, so that claims cost nothing."""


def safetensors_tree(rng: Random, data: bytes) -> bytes:
    """A change inside the header of a safetensors file; its length stays right most of the time."""
    if len(data) < 8 or rng.random() < 0.15:
        return havoc(rng, data)
    (length,) = struct.unpack_from("<Q", data)
    if not 8 <= length <= len(data) - 8:
        return havoc(rng, data)
    header = json_tree(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


class Folder:
    """A tiny model's folder in which one file is replaced by each input."""

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fuzz-"))
        write_tiny_model(self.path, blocks=2)
        self.file = self.path / name

    def run(self, data: bytes) -> str:
        self.file.write_bytes(data)
        return opened(self.path)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def opened(path: Path) -> str:
    """Open what lies there as a model, and read what a client and a node would."""
    with open_checkpoint(str(path)) as checkpoint:
        read = 0
        for name, info in list(checkpoint.manifest.items())[:40]:
            if np.prod(info.shape, dtype=object) * 8 <= MOST_TENSOR_BYTES:
                checkpoint.tensor(name)
                read += 1
        tokenizer = checkpoint.tokenizer()
        ids = tokenizer.encode("Hello, wörld! 123 \n\n\t<|im_end|>")
        tokenizer.decode(ids)
        return f"{read} tensors"


def _in_folder(name: str, mutate: Callable[[Random, bytes], bytes], target: str, largest: int) -> Target:
    def prepare() -> Prepared:
        folder = Folder(name)
        seeds = [folder.file.read_bytes()]
        return Prepared(seeds, folder.run, folder.close)

    return Target(target, prepare, mutate=mutate, largest=largest, slow_s=4.0)


def _gguf() -> Target:
    def prepare() -> Prepared:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        path = folder / "model.gguf"

        def run(data: bytes) -> str:
            path.write_bytes(data)
            return opened(path)

        return Prepared([tiny_gguf(folder)], run, lambda: shutil.rmtree(folder, ignore_errors=True))

    return Target("gguf", prepare, largest=256 * 1024, slow_s=4.0)


def _split_gguf() -> Target:
    """Parts of one model, and recipes of what is wrong with one of them."""

    def prepare() -> Prepared:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        tiny_gguf(folder, split=4)
        parts = {part: part.read_bytes() for part in sorted(folder.glob("*.gguf"))}

        def run(data: bytes) -> str:
            try:
                recipe = json.loads(data)
                part = list(parts)[recipe["part"] % len(parts)]
                changed = spoilt(parts[part], recipe)
            except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(f"this is no recipe: {error!r}") from None
            for each, content in parts.items():
                each.unlink(missing_ok=True)  # one that was open before may be mapped still
                each.write_bytes(changed if each == part else content)
            return opened(part)

        recipes: list[dict[str, Any]] = [
            {"part": 0, "keys": {}, "names": {}, "flips": [], "cut": 0},
            {"part": 1, "keys": {"split.no": 1, "split.count": 3, "split.tensors.count": 11}},
            {"part": 2, "keys": {"general.architecture": "llama", "llama.block_count": 1, "x": [1]}},
            {"part": 1, "names": {"0": "token_embd.weight", "1": "blk.0.attn_q.weight", "2": None}},
            {"part": 2, "flips": [[8, 255], [16, 3], [300, 0]], "cut": 31},
        ]
        seeds = [json.dumps(recipe).encode() for recipe in recipes]
        return Prepared(seeds, run, lambda: shutil.rmtree(folder, ignore_errors=True))

    return Target("split-gguf", prepare, mutate=json_tree, slow_s=4.0)


def spoilt(part: bytes, recipe: Any) -> bytes:
    """A part with other ``keys``, with other ``names`` of tensors by their numbers (None: without them), with
    other bytes (``flips``: place and value), and without ``cut`` bytes at the end."""
    file = GGUFFile.parse(part)
    for key, value in recipe.get("keys", {}).items():
        file.keys = [*(each for each in file.keys if each[0] != key), (key, encoded_value(value, len(key)))]
    names = {int(number) % len(file.tensors): name for number, name in recipe.get("names", {}).items()}
    file.tensors = [
        (str(names.get(number, tensor[0])), *tensor[1:])
        for number, tensor in enumerate(file.tensors)
        if names.get(number, "") is not None
    ]
    out = bytearray(file.encoded())
    for at, value in recipe.get("flips", []):
        out[int(at) % len(out)] = int(value) % 256
    return bytes(out[: len(out) - int(recipe.get("cut", 0)) % len(out)])


def tiny_gguf(folder: Path, split: int = 0) -> bytes:
    """A GGUF file of a Llama with one block and a vocabulary of bytes. ``split``: into files of at most so
    many tensors, of which the first is returned."""
    from gguf import GGUFWriter

    path = folder / "seed.gguf"
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    merges = [(chr(0x100 + n), chr(0x101 + n)) for n in range(44)]
    writer.add_token_list([*(chr(0x100 + n) for n in range(256)), *map("".join, merges)])
    writer.add_token_types([1] * 300)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    for name, tensor in {
        "token_embd.weight": zeros(300, 32),
        "output_norm.weight": zeros(32),
        "blk.0.attn_norm.weight": zeros(32),
        "blk.0.ffn_norm.weight": zeros(32),
        "blk.0.attn_q.weight": zeros(32, 32),
        "blk.0.attn_k.weight": zeros(16, 32),
        "blk.0.attn_v.weight": zeros(16, 32),
        "blk.0.attn_output.weight": zeros(32, 32),
        "blk.0.ffn_gate.weight": zeros(32, 32),
        "blk.0.ffn_up.weight": zeros(32, 32),
        "blk.0.ffn_down.weight": zeros(32, 32),
    }.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(folder.glob("seed*.gguf")).read_bytes()


def _manifest() -> Target:
    def prepare() -> Prepared:
        hashes = bytes(range(32))
        files = (
            PieceFile("config.json", 10, 10, hashes, hashes),
            PieceFile("model.safetensors", 70_000, 100, hashes * 2, hashes),
        )
        parts = [PieceFile(name, 70_000, 100, hashes * 2, hashes) for name in gguf_names(3)]
        lists = (PieceManifest(65536, each) for each in (files, tuple(parts)))
        return Prepared([each.encoded for each in lists], run_manifest)

    return Target("manifest", prepare, mutate=msgpack_tree)


def run_manifest(data: bytes) -> str:
    import hashlib

    manifest = PieceManifest.parse(data, hashlib.sha256(data).hexdigest())
    for piece in range(min(manifest.n_pieces, 4)):
        manifest.place(piece)
        manifest.size_of(piece)
    return f"{len(manifest.files)} files"


def _index() -> Target:
    def prepare() -> Prepared:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        path = folder / "model.safetensors.index.json"

        def run(data: bytes) -> str:
            path.write_bytes(data)
            return f"{len(read_index(path))} tensors"

        seed = {
            "metadata": {"total_size": 1},
            "weight_map": {"a": "model-1.safetensors", "b": "x.safetensors"},
        }
        seeds = [json.dumps(seed).encode()]
        return Prepared(seeds, run, lambda: shutil.rmtree(folder, ignore_errors=True))

    return Target("index", prepare, mutate=json_tree)


TARGETS = [
    _in_folder("model.safetensors", safetensors_tree, "safetensors", 1 << 20),
    _in_folder("config.json", json_tree, "config", 64 * 1024),
    _in_folder("tokenizer.json", json_tree, "tokenizer", 256 * 1024),
    _in_folder("tokenizer_config.json", json_tree, "tokenizer-config", 64 * 1024),
    _gguf(),
    _split_gguf(),
    _manifest(),
    _index(),
]
