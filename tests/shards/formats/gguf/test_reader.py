"""GGUF files against what the gguf package and transformers read from them."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.gguf import header as gguf_header
from swarm_node.shards.formats.gguf.reader import open_gguf
from swarm_node.shards.formats.qtypes import DENSE, GGUF_QTYPES
from swarm_node.swarm.errors import CheckpointError, ModelError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import Span

GGUFLlama = Callable[..., Path]
Q = "model.layers.1.self_attn.q_proj.weight"


def half_split(raw: np.ndarray, heads: int) -> np.ndarray:
    """HuggingFace's row order from the converter's, on values: the reference for ours on raw rows."""
    rows = raw.shape[0]
    return raw.reshape(heads, rows // heads // 2, 2, *raw.shape[1:]).swapaxes(1, 2).reshape(raw.shape)


@pytest.mark.parametrize("qtype", [*DENSE, *(qtype for qtype in GGUF_QTYPES if hasattr(gguf.quants, qtype))])
def test_tensors_equal_the_gguf_package(gguf_llama: GGUFLlama, qtype: str) -> None:
    path = gguf_llama(qtype, tied=False)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with open_checkpoint(str(path)) as model:
        for ours, stored in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
            raw = model.tensor(f"model.layers.1.{ours}.weight")
            reference = theirs[f"blk.1.{stored}.weight"]
            expected = gguf.quants.dequantize(reference.data, reference.tensor_type)
            assert np.array_equal(raw.dequantize(), expected)
            assert raw.qtype == qtype
            rows = [3, 0, 3, raw.shape[0] - 1]
            assert np.array_equal(raw.dequantize_rows(rows), expected[rows])
        for ours, heads in (("q_proj", 4), ("k_proj", 2)):
            reference = theirs[f"blk.1.attn_{ours[0]}.weight"]
            expected = half_split(gguf.quants.dequantize(reference.data, reference.tensor_type), heads)
            raw = model.tensor(f"model.layers.1.self_attn.{ours}.weight")
            assert np.array_equal(raw.dequantize(), expected)
            assert np.array_equal(raw.dequantize_rows([5, 1]), expected[[5, 1]])
            rounded = torch.from_numpy(raw.dequantize()).bfloat16().view(torch.uint16).numpy()
            assert np.array_equal(raw.dequantize("bfloat16"), rounded)


@pytest.mark.parametrize(
    "qtype", ["Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
)
def test_values_equal_an_independent_decoder(gguf_llama: GGUFLlama, qtype: str) -> None:
    dequantize = pytest.importorskip("transformers.integrations.gguf.dequant").dequantize
    with open_checkpoint(str(gguf_llama(qtype))) as model:
        raw = model.tensor("model.layers.0.mlp.up_proj.weight")
        flat = torch.from_numpy(np.array(raw.data).reshape(-1))
        expected = dequantize(flat, int(gguf.GGMLQuantizationType[qtype])).reshape(raw.shape)
        torch.testing.assert_close(torch.from_numpy(raw.dequantize()), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("qtype", ["Q4_0", "Q4_1", "Q8_0"])
def test_groups_hold_the_same_values(gguf_llama: GGUFLlama, qtype: str) -> None:
    with open_checkpoint(str(gguf_llama(qtype))) as model:
        raw = model.tensor(Q)
        q, scale, minimum = raw.blocks()
        assert q.shape == (256, 256)
        assert scale.shape == minimum.shape == (256, 8)
        values = q.reshape(256, 8, 32) * scale[..., None] + minimum[..., None]
        assert np.array_equal(values.reshape(256, 256), raw.dequantize())


def test_other_types_have_no_groups(gguf_llama: GGUFLlama) -> None:
    with (
        open_checkpoint(str(gguf_llama("Q4_K"))) as model,
        pytest.raises(UnsupportedModelError, match="groups of 32"),
    ):
        model.tensor(Q).blocks()


@pytest.mark.parametrize("qtype", ["F32", "F16", "Q8_0", "Q4_0"])
def test_weights_equal_transformers(gguf_llama: GGUFLlama, qtype: str) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = gguf_llama(qtype, tied=False)
    skeleton = transformers.LlamaForCausalLM(
        transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    )
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=skeleton)["tensors"]
    assert set(theirs) == set(skeleton.state_dict())
    with open_checkpoint(str(path)) as model:
        for name, expected in theirs.items():
            torch.testing.assert_close(
                torch.from_numpy(model.tensor(name).dequantize()), expected.float(), rtol=1e-6, atol=1e-6
            )


def test_config(gguf_llama: GGUFLlama) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_eot_token_id(7)

    with open_checkpoint(str(gguf_llama("Q4_0", extra=extra, bias=True))) as model:
        config = model.config
        attention, mlp = config.blocks[0].attention, config.blocks[0].mlp
        assert mlp is not None
        assert (config.n_blocks, config.hidden_size, attention.heads, attention.kv_heads) == (2, 256, 4, 2)
        assert (attention.head_dim, mlp.inner, config.vocab_size) == (64, 512, 50)
        assert config.tie_word_embeddings
        assert attention.bias
        assert config.eos_token_ids == (2, 7)
        assert config.native_dtype == "Q4_0"
        rope = attention.rope
        assert rope is not None
        assert (rope.type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4, 32)
        assert not model.has("lm_head.weight")
        assert not model.has("model.layers.1.self_attn.q_proj.bias")
        bias = model.tensor("model.layers.0.self_attn.q_proj.bias").dequantize()
        assert np.array_equal(bias, half_split(np.arange(256, dtype=np.float32), 4))


def test_llama3_frequency_factors(gguf_llama: GGUFLlama) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    with open_checkpoint(str(gguf_llama(extra=extra))) as model:
        rope = model.config.blocks[0].attention.rope
        assert rope is not None
        assert rope.frequency_factors == tuple(factors.tolist())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_sliding_window(64), "sliding-window"),
        (lambda w: w.add_value_length(32), "different sizes"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "longrope"),
    ],
)
def test_unsupported_models(
    gguf_llama: GGUFLlama, extra: Callable[[gguf.GGUFWriter], None], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(str(gguf_llama(extra=extra)))


@pytest.mark.parametrize(
    ("extra", "bounds", "message"),
    [
        (lambda w: w.add_string("split.count", "x"), {}, "split.count is 'x', expected a whole number"),
        (lambda w: w.add_array("split.count", [1, 2]), {}, "split.count is <2 items>, expected"),
        (
            lambda w: w.add_string("llama.embedding_length", "x"),
            {},
            r"llama\.embedding_length is 'x', expected a whole",
        ),
        (lambda w: w.add_string("general.url", "x" * 1000), {"MAX_HEADER": 1000}, "text of|breaks off"),
        (lambda w: w.add_array("a", ["x"] * 60), {"MAX_ITEMS": 100}, "an array of"),
        (lambda w: w.add_string("k" * 1025, "x"), {}, "a name of 1025 bytes"),
    ],
)
def test_headers_out_of_bounds(
    gguf_llama: GGUFLlama,
    monkeypatch: pytest.MonkeyPatch,
    extra: Callable[[gguf.GGUFWriter], None],
    bounds: dict[str, int],
    message: str,
) -> None:
    path = gguf_llama(extra=extra)
    for name, value in bounds.items():
        monkeypatch.setattr(gguf_header, name, value)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(str(path))


def test_texts_that_are_too_long_stay_in_the_file(
    gguf_llama: GGUFLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_llama(extra=lambda w: [w.add_string(f"text{n}", "x" * 400) for n in range(3)])
    monkeypatch.setattr(gguf_header, "MAX_TEXTS", 1000)
    metadata = open_gguf(path).header.metadata
    kept = [isinstance(metadata[f"text{n}"], str) for n in range(3)]
    assert kept == [True, True, False]
    assert metadata["text2"].count == 400
    assert metadata["general.architecture"] == "llama"


@pytest.mark.parametrize("number", ["9" * 1000, "\N{SUPERSCRIPT TWO}", "007", "-1"])
def test_blocks_of_strange_numbers_are_no_blocks(gguf_llama: GGUFLlama, number: str) -> None:
    name = f"blk.{number}.attn_q.weight"
    path = gguf_llama(extra=lambda w: w.add_tensor(name, np.zeros((1, 32), dtype=np.float32)))
    with pytest.raises(UnsupportedModelError, match="does not use: 'blk") as caught:
        open_checkpoint(str(path))
    assert len(str(caught.value)) < 400


def test_other_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="mamba") as caught:
        open_checkpoint(str(tmp_path / "x.gguf"))
    assert "llama" in caught.value.hint


def test_span_outside_the_model(gguf_llama: GGUFLlama) -> None:
    with pytest.raises(UsageError, match="outside the model, which has 2"):
        open_checkpoint(str(gguf_llama()), blocks=Span(1, 3))


def test_truncated_file(gguf_llama: GGUFLlama) -> None:
    path = gguf_llama("Q4_0")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        open_checkpoint(str(path))
    assert caught.value.hint
    for size in (0, 3, 4, 20, 24, 100, 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(str(path))


def test_overlapping_tensors(gguf_llama: GGUFLlama) -> None:
    path = gguf_llama()
    data = bytearray(path.read_bytes())
    # The last entry of the tensor table: name, 2 dimensions, type, offset.
    place = data.index(b"blk.1.ffn_down.weight") + len("blk.1.ffn_down.weight") + 4 + 16 + 4
    (offset,) = struct.unpack_from("<Q", data, place)
    struct.pack_into("<Q", data, place, offset - 32)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="overlaps"):
        open_checkpoint(str(path))


def test_missing_tensor(gguf_llama: GGUFLlama) -> None:
    path = gguf_llama()
    data = path.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"no tensor blk\.1\.ffn_down\.weight"):
        open_checkpoint(str(path))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    )
)
def test_damaged_headers_give_model_errors(
    gguf_llama: GGUFLlama, tmp_path: Path, changes: list[tuple[float, int]]
) -> None:
    """Bytes changed anywhere in the header: the file opens, or says what is wrong with it."""
    path, whole = tmp_path / "damaged.gguf", tmp_path / "whole.gguf"
    if not whole.exists():
        gguf_llama("Q4_0", name="whole.gguf")
    data = bytearray(whole.read_bytes())
    header = open_gguf(whole).header
    end = min(tensor.offset for tensor in header.tensors.values())
    for place, value in changes:
        data[int(place * end)] = value
    path.write_bytes(data)
    try:
        open_checkpoint(str(path)).close()
    except ModelError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.model
def test_opening_the_real_model_is_quick(smollm2_path: Path) -> None:
    start = time.process_time()
    with open_checkpoint(str(smollm2_path)) as model:
        seconds = time.process_time() - start
        assert model.config.n_blocks == 30
        assert model.config.native_dtype == "Q4_1"
        assert model.ref.name == smollm2_path.stem
    assert seconds < 0.5
