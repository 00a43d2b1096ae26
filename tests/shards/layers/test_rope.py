"""Rope tables against transformers' own, for every scaling variant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.layers.rope import Rope, frequencies
from swarm_node.shards.torch.tensors.rope import TorchRope

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
    },
    "yarn-factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.7,
        "truncate": False,
    },
}
LONG = {"short_factors": tuple(1.0 + 0.1 * at for at in range(10)), "long_factors": tuple(range(2, 12))}


def configs(rope: str, head_dim: int = 20, theta: float = 5000.0) -> tuple[RopeConfig, LlamaConfig]:
    document = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 40,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "vocab_size": 30,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_theta": theta, **ROPES[rope]},
    }
    theirs = LlamaConfig(**{key: value for key, value in document.items() if key != "architectures"})
    ours = hf_config(document, {}, "test").blocks[0].attention.rope
    assert ours is not None
    return ours, theirs


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("head_dim", [6, 20, 64])
@pytest.mark.parametrize(("start", "count"), [(0, 7), (50, 14), (60, 30), (600, 1)])
def test_rotates_as_transformers_does(rope: str, head_dim: int, start: int, count: int) -> None:
    ours, theirs = configs(rope, head_dim)
    x = torch.randn(count, 3, head_dim, generator=torch.Generator().manual_seed(0))
    cos, sin = (torch.from_numpy(rows)[:, None] for rows in Rope(ours).rows([(start, count)]))
    turned = x * cos + x.roll(head_dim // 2, -1) * sin
    want_cos, want_sin = LlamaRotaryEmbedding(theirs)(x, torch.arange(start, start + count)[None])
    want = x * want_cos[0, :, None] + rotate_half(x) * want_sin[0, :, None]
    torch.testing.assert_close(turned, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rope", ROPES)
def test_pieces_are_those_of_each_session_alone(rope: str) -> None:
    ours, _ = configs(rope)
    slices = [(3, 4), (1000, 2), (0, 1), (70, 5)]
    together = Rope(ours).rows(slices)
    alone = [Rope(ours).rows([part]) for part in slices]
    for index in (0, 1):
        assert together[index].shape == (12, 20)
        assert np.array_equal(together[index], np.concatenate([rows[index] for rows in alone]))


def test_a_growing_table_keeps_its_rows() -> None:
    rope = Rope(configs("default")[0])
    before = rope.rows([(100, 300)])[0].copy()
    rope.rows([(5000, 1)])
    assert np.array_equal(rope.rows([(100, 300)])[0], before)


def test_dynamic_forgets_lengths_but_not_their_values() -> None:
    rope = Rope(configs("dynamic")[0])
    first = rope.rows([(70, 1)])[0].copy()
    for position in range(80, 400):
        rope.rows([(position, 1)])
    assert np.array_equal(rope.rows([(70, 1)])[0], first)


def test_frequency_factors_divide() -> None:
    from dataclasses import replace

    ours, _ = configs("default")
    factors = tuple(1.0 + i for i in range(10))
    scaled = replace(ours, frequency_factors=factors)
    plain = Rope(ours).rows([(6, 1)])
    divided = Rope(scaled).rows([(6, 1)])
    angle = np.arctan2(plain[1][0, 10:], plain[0][0, 10:])[1:]  # below pi from the second on
    np.testing.assert_allclose(divided[1][0, 11:], np.sin(angle / factors[1:]), rtol=1.3e-6, atol=1e-5)


def turned_by(inv_freq: torch.Tensor, factor: float, start: int, count: int) -> list[torch.Tensor]:
    angles = (torch.arange(start, start + count).float()[:, None] * inv_freq).double()
    return [(part * factor).repeat(1, 2).float() for part in (angles.cos(), angles.sin())]


@pytest.mark.parametrize(
    "changes", [{"factor": 6.0}, {"factor": 0.5}, {"factor": 4.0, "attention_factor": 1.3}]
)
def test_longrope_has_factors_of_short_and_of_long_sessions(changes: dict[str, float]) -> None:
    """Which are chosen for a whole session, positions below the trained length included."""
    ours = RopeConfig(20, 5000.0, "longrope", original_max_position_embeddings=32, **LONG, **changes)
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 5000.0,
        "original_max_position_embeddings": 32,
        "short_factor": list(LONG["short_factors"]),
        "long_factor": list(LONG["long_factors"]),
        **changes,
    }
    theirs = LlamaConfig(hidden_size=40, num_attention_heads=2, head_dim=20, rope_parameters=scaling)
    rope, slices = Rope(ours), [(0, 9, False), (3, 40, True), (100, 2, False), (700, 1, True)]
    for start, count, long in slices:
        inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, "cpu", seq_len=33 if long else 32)
        cos, sin = turned_by(inv_freq, factor, start, count)
        got = rope.slice_rows(start, count, long)
        np.testing.assert_allclose(got[0], cos, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[1][:, 10:], sin[:, 10:], rtol=1e-5, atol=1e-5)
        table = rope.table(start + count, long)
        assert table is not None
        assert np.array_equal(table[0][start : start + count], got[0])
    together = rope.rows(slices)
    assert np.array_equal(together[0], np.concatenate([rope.slice_rows(*part)[0] for part in slices]))


def test_proportional_rope_leaves_what_is_not_turned() -> None:
    ours = RopeConfig(20, 5000.0, "proportional", factor=2.0, turned_dim=6)
    scaling = {"rope_type": "proportional", "rope_theta": 5000.0, "factor": 2.0, "partial_rotary_factor": 0.3}
    theirs = LlamaConfig(hidden_size=40, num_attention_heads=2, head_dim=20, rope_parameters=scaling)
    inv_freq, _ = ROPE_INIT_FUNCTIONS["proportional"](theirs, "cpu")
    np.testing.assert_array_equal(frequencies(ours)[0], inv_freq)
    cos, sin = Rope(ours).slice_rows(7, 5)
    assert (cos.reshape(5, 2, 10)[..., 3:] == 1).all()
    assert (sin.reshape(5, 2, 10)[..., 3:] == 0).all()


def test_tensors_in_bfloat16_are_the_rounded_rows() -> None:
    ours, _ = configs("yarn")
    exact = Rope(ours).rows([(9, 3)])
    rounded = TorchRope(ours, torch.device("cpu"), torch.bfloat16).rows([(9, 3)])
    for tensor, rows in zip(rounded, exact, strict=True):
        assert torch.equal(tensor, torch.from_numpy(rows)[:, None].bfloat16())
