"""Every field of every file of a model, changed: the same model, one that transformers computes so too, or an
error of ours.

A file comes from a stranger, who may write anything in any place. So the test does not choose places: it
walks over the files of a small model, and puts values of every kind wherever it comes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.layers.rope import dynamic_inv_freq, frequencies
from swarm_node.swarm.errors import ModelError, UsageError
from tests.shards.gguf_files import write_gguf_llama
from tests.shards.tokenizer.transformers_words import shape_of

pytestmark = pytest.mark.slow

HFLlama = Callable[..., Path]
Path_ = tuple[str | int, ...]
GONE = object()
"""In place of a value: its key is not there."""
VALUES: list[Any] = [
    *(GONE, None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 10**30, int("9" * 4000)),
    *(0.5, 1.0, -0.0, 1e-30, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "3", "²", "٣", "9" * 40, "\ud800", "\x1b[31m", "llama", "a" * 9000, "{{ 1 }}", "linear"),
    *([], [1], ["a"], [None], [[1]], [True], [-1], [10**30], ["a"] * 5000, list(range(300))),
    *({}, {"a": 1}, {"content": 5}, {"content": "x", "special": 3}, {"rope_type": "yarn", "factor": 2}),
]
ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16,
        "mscale": 1.0,
    }
    | {"beta_slow": 2, "mscale_all_dim": 0.5, "attention_factor": None, "truncate": True},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 64},
]
CONFIG: dict[str, Any] = {
    "hidden_act": "silu",
    "head_dim": 16,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "torch_dtype": "float32",
    "num_hidden_layers": 2,
    "layer_types": ["full_attention"] * 2,
    "is_causal": True,
    "quantization_config": None,
    "quantization": None,
    "original_max_position_embeddings": 64,
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True, "lstrip": False},
    "unk_token": None,
    "added_tokens_decoder": {
        "0": {"content": "<s>", "special": True, "lstrip": False, "rstrip": False, "normalized": False},
        "300": {"content": "<new>", "special": False, "single_word": False},
    },
    "additional_special_tokens": ["<s>"],
    "chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}],
    "model_max_length": 128,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def write(directory: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: n for n, token in enumerate(["<s>", "</s>", *alphabet, "ab", "abc"])}
    backend = Backend(models.BPE(vocab=vocab, merges=[("a", "b"), ("ab", "c")]))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("q", "k")])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(directory / "tokenizer.json"))
    tensors = (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    document = json.loads((directory / "tokenizer.json").read_text())
    document["model"]["vocab"] = dict(list(document["model"]["vocab"].items()))
    files = {
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "rstrip": False}},
        "generation_config.json": {"eos_token_id": [2, 5], "bos_token_id": 1, "max_length": 20},
        "model.safetensors.index.json": {
            "metadata": {"total_size": 1},
            "weight_map": dict.fromkeys(header_of(tensors.read_bytes())[0], tensors.name),
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, data[8 + length :]


def places(value: Any, at: Path_ = (), limit: int = 12) -> Iterator[Path_]:
    """Every place in a document; of a long list or object the first few."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:limit] + list(items)[-2:]:
        yield from places(inner, (*at, key), limit)


def changed(document: Any, place: Path_, value: Any) -> Any:
    """``document`` stays as it is; what is not on the way to ``place`` is shared with it."""
    if not place:
        return None if value is GONE else value
    key, *rest = place
    document = document.copy()
    if rest:
        document[key] = changed(document[key], tuple(rest), value)
    elif value is GONE:
        del document[key]
    else:
        document[key] = value
    return document


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: HFLlama) -> Path:
    folder = hf_llama_in(tmp_path_factory.mktemp("whole"), **CONFIG, rope_scaling=ROPES[2])
    return write(folder)


def of_transformers(directory: Path) -> dict[str, Any] | None:
    """What transformers reads in our words; None where it refuses the file, or would make a computation that
    is no number."""
    try:
        theirs = AutoConfig.from_pretrained(directory)
        theirs.standardize_rope_params()
        rotary = LlamaRotaryEmbedding(theirs)
    except Exception:  # noqa: BLE001 - transformers raises what it likes
        return None
    if not (rotary.inv_freq.isfinite().all() and isinstance(theirs.head_dim, int)):
        return None
    return shape_of(theirs) | {
        "inv_freq": rotary.inv_freq.numpy(),
        "attention_scaling": float(rotary.attention_scaling),
    }


def ours(config: ModelConfig) -> dict[str, Any]:
    attention, mlp = config.blocks[0].attention, config.blocks[0].mlp
    assert attention.rope is not None
    assert mlp is not None
    inv_freq, factor = frequencies(attention.rope)
    if attention.rope.type == "dynamic":
        inv_freq = dynamic_inv_freq(attention.rope, attention.rope.original_max_position_embeddings)
    return {
        "n_blocks": config.n_blocks,
        "hidden_size": config.hidden_size,
        "n_heads": attention.heads,
        "n_kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": mlp.inner,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.final_norm.eps,
        "attention_bias": attention.bias,
        "mlp_bias": mlp.bias,
        "inv_freq": inv_freq,
        "attention_scaling": factor,
    }


def shape(config: ModelConfig) -> tuple[int, int]:
    return config.n_blocks, config.blocks[0].attention.head_dim


def computes_the_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        np.allclose(value, other[name], rtol=1e-5)
        if name == "inv_freq"
        else value == pytest.approx(other[name])
        for name, value in one.items()
    )


def use(path: Path, chat: bool = False) -> ModelConfig | None:
    """Open a model and its tokenizer, as a client does. None where one of our errors says why not."""
    config = None
    try:
        with open_checkpoint(str(path)) as checkpoint:
            config = checkpoint.config
            tokenizer = checkpoint.tokenizer()
            tokenizer.decode(tokenizer.encode("Hello abc <s> <new> x")[:50])
            tokenizer.special_ids(), tokenizer.token_bytes(5)
            if chat and tokenizer.has_chat_template:
                tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
            tokenizer.close()
    except ModelError as error:
        check_message(error)
    return config


def check_message(error: ModelError) -> None:
    """Two lines at most, and nothing in them that steers a terminal."""
    lines = f"{error}\n{error.hint or ''}".strip().splitlines()
    assert len(lines) <= 2, lines
    assert max(map(len, lines)) < 2500, lines
    assert "\x1b" not in str(error)


def copy_of(model: Path, folder: Path) -> Path:
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
FILES += ("special_tokens_map.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors")
MANY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@MANY
@given(data=st.data())
@pytest.mark.parametrize("file", FILES)
def test_json_files(model: Path, tmp_path: Path, file: str, data: st.DataObject) -> None:
    content = (model / file).read_bytes()
    tail = b""
    if file.endswith(".safetensors"):
        document, tail = header_of(content)
    else:
        document = json.loads(content)
    if file == "config.json":
        document["rope_scaling"] = data.draw(st.sampled_from(ROPES), "rope")
        document["model_type"] = data.draw(st.sampled_from(["llama", "mistral"]), "family")
        whole = ours(hf_config(document, {}, "config.json"))
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 3]), "changes")):
        place = data.draw(st.sampled_from(list(places(document))), "place")
        document = changed(document, place, data.draw(st.sampled_from(VALUES), "value"))
    text = encoded(document)
    copy_of(model, tmp_path)
    (tmp_path / file).write_bytes(len(text).to_bytes(8, "little") + text + tail if tail else text)
    config = use(tmp_path)
    if file == "config.json" and config is not None:
        (tmp_path / file).write_bytes(encoded(as_transformers_wants_it(document)))
        expected = of_transformers(tmp_path)
        assert computes_the_same(ours(config), expected or whole), (document, config, expected)


def as_transformers_wants_it(document: dict[str, Any]) -> dict[str, Any]:
    """What older files have, and transformers 5 refuses: no model_type, a whole number for a fraction."""
    if document.get("model_type") is None:
        document = {**document, "model_type": "llama"}
    if type(document.get("rms_norm_eps")) is int:
        document = {**document, "rms_norm_eps": float(document["rms_norm_eps"])}
    return document


GGUF_TYPES: list[tuple[int, bytes]] = [
    *((4, struct.pack("<I", n)) for n in (0, 1, 2, 7, 2**31, 2**32 - 1)),
    *((10, struct.pack("<Q", n)) for n in (0, 64, 2**63, 2**64 - 1)),
    *((5, struct.pack("<i", n)) for n in (-1, 3)),
    *((6, struct.pack("<f", x)) for x in (0.0, 1.0, -1.0, 1.5, 1e30, 1e-30, float("nan"), float("inf"))),
    *((12, struct.pack("<d", x)) for x in (1e300, 2.0)),
    *((7, bytes([b])) for b in (0, 1, 2)),
    *((8, struct.pack("<Q", len(t)) + t) for t in (b"", b"x", b"3", b"llama", b"gpt2", b"yarn", b"\xff\xfe")),
    *((9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", *n)) for n in ((1, 1, 1), (1, 2, -3))),
    *((9, struct.pack("<IQ", kind, 0)) for kind in (4, 8, 9, 77)),
    (9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 1) + b"b"),
    (9, struct.pack("<IQ", 6, 50) + struct.pack("<50f", *[float("nan")] * 50)),
    (9, struct.pack("<IQ", 4, 2**62)),
    (77, b""),
]
"""Type and bytes of a value."""
GGUF_KEYS = (
    *("split.count", "general.alignment", "general.name", "tokenizer.chat_template", "tokenizer.ggml.pre"),
    *("tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.add_bos_token"),
    *("tokenizer.ggml.merges", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_eos_token"),
    *(f"llama.{key}" for key in ("attention.key_length", "attention.value_length", "expert_count")),
    *(f"llama.{key}" for key in ("attention.sliding_window", "attention.scale", "attention.causal")),
    *(f"llama.rope.{key}" for key in ("scaling.type", "scaling.factor", "scale_linear", "freq_base")),
    *(f"llama.rope.scaling.{key}" for key in ("attn_factor", "original_context_length", "yarn_beta_fast")),
    *("llama.vocab_size", "llama.logit_scale", "llama.no_such_key"),
)
"""Beside those that the file has."""


class RawGGUF:
    """A GGUF file as the bytes of its keys' values and of its tensors' entries."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(str(path))
        self.values = {
            key: b"".join(part.tobytes() for part in field.parts[2:])
            for key, field in reader.fields.items()
            if not key.startswith("GGUF.")
        }
        self.tensors = [
            (
                str(t.name),
                [int(n) for n in t.shape],
                int(t.tensor_type),
                int(t.data_offset - reader.data_offset),
            )
            for t in reader.tensors
        ]
        self.tail = path.read_bytes()[reader.data_offset :]

    def copied(self) -> RawGGUF:
        found = copy(self)
        found.values, found.tensors = {**self.values}, [*self.tensors]
        return found

    def encoded(self) -> bytes:
        out = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.values))
        for key, value in self.values.items():
            out += struct.pack("<Q", len(key)) + key.encode() + value
        for name, dims, kind, offset in self.tensors:
            out += struct.pack("<Q", len(name)) + name.encode()
            out += struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + struct.pack("<IQ", kind, offset)
        return out + bytes(-len(out) % 32) + self.tail


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf_llama(tmp_path_factory.mktemp("gguf"), "F32", tied=False, bias=True)


@pytest.fixture(scope="module")
def raw_gguf(gguf_model: Path) -> RawGGUF:
    return RawGGUF(gguf_model)


@MANY
@given(data=st.data())
def test_gguf_metadata(raw_gguf: RawGGUF, tmp_path: Path, data: st.DataObject) -> None:
    raw = raw_gguf.copied()
    keys = [*raw.values, *GGUF_KEYS]
    for _ in range(data.draw(st.sampled_from([1, 1, 2, 3]), "changes")):
        key = data.draw(st.sampled_from(keys), "key")
        value = data.draw(st.none() | st.sampled_from(GGUF_TYPES), "value")
        if value is None:
            raw.values.pop(key, None)
        else:
            raw.values[key] = struct.pack("<I", value[0]) + value[1]
    (tmp_path / "x.gguf").write_bytes(raw.encoded())
    use(tmp_path / "x.gguf")


@MANY
@given(data=st.data())
def test_gguf_tensor_entries(
    gguf_model: Path, raw_gguf: RawGGUF, tmp_path: Path, data: st.DataObject
) -> None:
    raw = raw_gguf.copied()
    with open_checkpoint(str(gguf_model)) as checkpoint:
        whole = checkpoint.config
    sizes = st.sampled_from([0, 1, 2, 50, 255, 256, 257, 2**31, 2**32, 2**63, 2**64 - 1])
    for _ in range(data.draw(st.sampled_from([1, 1, 2]), "changes")):
        at = data.draw(st.integers(0, len(raw.tensors) - 1), "tensor")
        name, dims, kind, offset = raw.tensors[at]
        match data.draw(st.sampled_from(["name", "dims", "kind", "offset", "gone"]), "field"):
            case "name":
                name = data.draw(
                    st.sampled_from(["", "x", "blk.²", "blk.0.attn_q.weight", "a\nb", name + "x"])
                )
            case "dims":
                dims = data.draw(st.lists(sizes, max_size=5) | st.just(dims[::-1]))
            case "kind":
                kind = data.draw(st.integers(0, 40) | st.just(2**32 - 1))
            case "offset":
                offset = data.draw(sizes)
            case "gone":
                raw.tensors.pop(at)
                continue
        raw.tensors[at] = (name, dims, kind, offset)
    (tmp_path / "x.gguf").write_bytes(raw.encoded())
    config = use(tmp_path / "x.gguf")
    assert config is None or shape(config) == shape(whole)


@settings(MANY, max_examples=12)
@given(
    template=st.sampled_from([b"", b"\xff", b"{{", b"{{ messages }}", b"{% for %}", b"{{ x.y.z }}", b"\x00"])
)
def test_chat_template_files(model: Path, tmp_path: Path, template: bytes) -> None:
    copy_of(model, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(template)
    try:
        use(tmp_path, chat=True)
    except UsageError:
        pass  # it refuses the chat
