"""Embedding, final norm and head, in every form, against plain float32."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.blocks.attention import AttentionConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.loading import load_client_model
from swarm_node.shards.models.client_part import HELD_ROWS, ClientModel
from swarm_node.shards.models.head import EXACT_ROWS, FinalNorm
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import UsageError

HFLlama = Callable[..., Path]
GGUFLlama = Callable[..., Path]
EXACT = LoadOptions(dtype="float32", quantize="none")


def hidden_states(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) * 3


def logits(model: ClientModel, hidden: Tensor) -> Tensor:
    return torch.from_numpy(model.logits(hidden.numpy()))


def plain_logits(checkpoint: Checkpoint, hidden: Tensor, head: str) -> Tensor:
    norm = torch.from_numpy(checkpoint.tensor("model.norm.weight").dequantize()).double()
    x = hidden.double()
    x = x / (x.pow(2).mean(-1, keepdim=True) + checkpoint.config.final_norm.eps).sqrt() * norm
    return (x @ torch.from_numpy(checkpoint.tensor(head).dequantize()).double().t()).float()


@pytest.mark.parametrize("rows", [1, 4, EXACT_ROWS, EXACT_ROWS + 1])
@pytest.mark.parametrize("tied", [True, False])
def test_exact_head(hf_llama: HFLlama, tied: bool, rows: int) -> None:
    with open_checkpoint(str(hf_llama(tie_word_embeddings=tied))) as checkpoint:
        model = load_client_model(checkpoint, EXACT)
        hidden = hidden_states(rows, 64)
        head = "model.embed_tokens.weight" if tied else "lm_head.weight"
        got = logits(model, hidden)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, plain_logits(checkpoint, hidden, head), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, EXACT_ROWS, EXACT_ROWS + 1])
@pytest.mark.parametrize("quantize", ["auto", "int8", "int4"])
def test_refined_head_is_exact_where_it_matters(hf_llama: HFLlama, quantize: str, rows: int) -> None:
    with open_checkpoint(str(hf_llama(vocab_size=6400, dtype=torch.bfloat16))) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions(quantize=quantize))
        hidden = hidden_states(rows, 64)
        got, want = logits(model, hidden), plain_logits(checkpoint, hidden, "lm_head.weight")
    best = want.topk(8).indices
    torch.testing.assert_close(got.gather(1, best), want.gather(1, best), rtol=1e-5, atol=1e-3)
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    assert ((got - want).norm() / want.norm()).item() < (0.15 if quantize == "int4" else 0.02)
    assert model.weights == "int8"  # an output head is not rounded to four bits


@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_1", "F16", "Q6_K"])
def test_gguf_heads(gguf_llama: GGUFLlama, qtype: str) -> None:
    with open_checkpoint(str(gguf_llama(qtype))) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions())
        for rows in (1, EXACT_ROWS + 1):
            hidden = hidden_states(rows, 256)
            want = plain_logits(checkpoint, hidden, "model.embed_tokens.weight")
            # All 50 tokens are among the best 64.
            torch.testing.assert_close(logits(model, hidden), want, rtol=1e-4, atol=2e-4 * float(want.std()))


@pytest.mark.parametrize("ids", [[0], [49, 3, 3, 7], []])
def test_embedding_rows(hf_llama: HFLlama, ids: list[int]) -> None:
    with open_checkpoint(str(hf_llama())) as checkpoint:
        model = load_client_model(checkpoint, EXACT)
        whole = checkpoint.tensor("model.embed_tokens.weight").dequantize()
        for given in (ids, np.array(ids, np.int64)):
            rows = model.embed(given)
            assert rows.dtype == np.float32
            assert np.array_equal(rows, whole[np.array(ids, np.int64)])


@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_1", "F16", "Q6_K"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_single_row_is_the_files(gguf_llama: GGUFLlama, qtype: str, tied: bool) -> None:
    with open_checkpoint(str(gguf_llama(qtype, tied=tied))) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions())
        whole = checkpoint.tensor("model.embed_tokens.weight").dequantize()
        rows = np.concatenate([model.embed([token]) for token in range(50)])
        assert rows.tobytes() == whole.tobytes()
        with pytest.raises(UsageError, match="0 to 49"):
            model.embed([50])


@pytest.mark.parametrize("ids", [[50], [-1], [3, 1 << 40]])
def test_ids_outside_the_vocabulary(hf_llama: HFLlama, ids: list[int]) -> None:
    with open_checkpoint(str(hf_llama())) as checkpoint, pytest.raises(UsageError, match="0 to 49"):
        load_client_model(checkpoint, EXACT).embed(ids)


@pytest.mark.model
def test_the_real_head_is_small_and_keeps_the_best_tokens(smollm2_path: Path) -> None:
    with open_checkpoint(str(smollm2_path)) as checkpoint:
        model: ClientModel = load_client_model(checkpoint, LoadOptions())
        assert model.weight_bytes < 31e6
        hidden = hidden_states(4, 576)
        want = plain_logits(checkpoint, hidden, "model.embed_tokens.weight")
        got = logits(model, hidden)
    best = want.topk(10).indices
    torch.testing.assert_close(got.gather(1, best), want.gather(1, best), rtol=1e-4, atol=1e-3)
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    divergence = (want.softmax(-1) * (want.log_softmax(-1) - got.log_softmax(-1))).sum(-1)
    assert divergence.max() < 2e-3


@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_1"])
def test_native_logits_are_the_same_bits_alone_and_in_a_batch(gguf_llama: GGUFLlama, qtype: str) -> None:
    hidden = hidden_states(70, 256)
    with open_checkpoint(str(gguf_llama(qtype))) as checkpoint:
        models = [
            load_client_model(checkpoint, LoadOptions(kernels="native"), threads=threads)
            for threads in (1, 3)
        ]
        want = torch.cat([logits(models[0], row) for row in hidden.split(1)])
        assert models[0].kernels == "native"
        for model in models:
            assert torch.equal(logits(model, hidden), want)


def test_logits_from_several_threads(gguf_llama: GGUFLlama) -> None:
    with open_checkpoint(str(gguf_llama("Q8_0"))) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions(kernels="native"), threads=2)
        inputs = [hidden_states(rows, 256).numpy() for rows in range(1, 30)]
        want = [model.logits(hidden) for hidden in inputs]
        with ThreadPoolExecutor(4) as executor:
            for _ in range(5):
                for got, expected in zip(executor.map(model.logits, inputs), want, strict=True):
                    assert np.array_equal(got, expected)


def test_a_head_of_another_width_is_refused(gguf_llama: GGUFLlama) -> None:
    with open_checkpoint(str(gguf_llama("Q8_0"))) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions(kernels="native"))
        with pytest.raises(ValueError, match="256"):
            model.logits(np.zeros((1, 255), np.float32))


def test_pages_of_the_embedding_are_let_go(gguf_llama: GGUFLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(str(gguf_llama("Q8_0"))) as checkpoint:
        model = load_client_model(checkpoint, LoadOptions(kernels="native"))
        released = 0
        rows = model.embed([3, 4])

        def release() -> None:
            nonlocal released
            released += 1

        monkeypatch.setattr(model, "_release", release)
        for _ in range(HELD_ROWS):
            assert np.array_equal(model.embed([3, 4]), rows)
        assert released == 1
        model.embed([5] * (HELD_ROWS + 1))
        assert released == 2


class Rows:
    """A head whose logits are the hidden states."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.copy()


def client_of(settings: dict[str, Any]) -> ClientModel:
    norm = NormConfig(1e-5)
    block = BlockConfig(AttentionConfig(1, 1, 4, 0.5, None), MlpConfig(4), norm=norm)
    config = ModelConfig("any", (block,), 4, 3, norm, 8, **settings)
    embedding = RawTensor("e", (3, 4), "F32", np.arange(12, dtype=np.float32).reshape(3, 4).view(np.uint8))
    final = FinalNorm(norm, None, None, 4)
    return ClientModel(config, embedding, final, Rows(), "cpu", 0, "", "", lambda: None)


def test_multipliers_and_the_softcap() -> None:
    model = client_of({"embedding_multiplier": 3.0, "logit_multiplier": 0.25, "logit_softcap": 30.0})
    assert np.array_equal(model.embed([1]), [[12, 15, 18, 21]])
    hidden = np.array([[1.0, -400.0, 80.0, 1e9]], np.float32)
    np.testing.assert_allclose(model.logits(hidden), 30 * np.tanh(hidden / 4 / 30), rtol=1e-6)
    assert np.array_equal(hidden, [[1.0, -400.0, 80.0, 1e9]])


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(
    ("weighted", "bias", "offset"), [(True, False, 1.0), (True, True, 0.0), (False, False, 0.0)]
)
def test_final_norms(kind: str, weighted: bool, bias: bool, offset: float) -> None:
    rng = np.random.default_rng(5)
    x, weight, shift = rng.normal(2, 3, (4, 40)), rng.normal(size=40), rng.normal(size=40)
    settings = NormConfig(1e-3, kind, weighted=weighted, bias=bias, offset=offset)
    norm = FinalNorm(
        settings,
        weight.astype(np.float32) if weighted else None,
        shift.astype(np.float32) if bias else None,
        40,
    )
    centred = x - x.mean(1, keepdims=True) if kind == "layer" else x
    want = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-3)
    want = want * (weight + offset if weighted else 1) + (shift if bias else 0)
    np.testing.assert_allclose(norm(x.astype(np.float32)), want, rtol=2e-5, atol=2e-5)
