"""Rotations on MLX against the rows of cos and sin that other backends multiply by."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from swarm_node.shards.formats.blocks.attention import QueryScale
from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.layers.rope import Rope
from swarm_node.shards.mlx.tensors.rope import MlxRope, Positions

ROPES = {
    "default": RopeConfig(16),
    "linear": RopeConfig(16, type="linear", factor=4.0),
    "dynamic": RopeConfig(16, type="dynamic", factor=2.0, original_max_position_embeddings=8),
    "llama3": RopeConfig(16, theta=500.0, type="llama3", factor=8.0, original_max_position_embeddings=32),
    "yarn": RopeConfig(16, type="yarn", factor=4.0, original_max_position_embeddings=32),
    "part of a head, yarn": RopeConfig(8, type="yarn", factor=4.0, original_max_position_embeddings=32),
    "longrope": RopeConfig(
        16,
        type="longrope",
        factor=4.0,
        original_max_position_embeddings=32,
        short_factors=(1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5),
        long_factors=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    ),
    "proportional": RopeConfig(16, type="proportional", turned_dim=8),
}


@pytest.mark.parametrize(("start", "tolerance"), [(0, 1e-6), (60, 2e-5), (100_000, 2e-2)])
@pytest.mark.parametrize("name", ROPES)
def test_positions_are_turned_alike(name: str, start: int, tolerance: float) -> None:
    """An angle is a position times a frequency: at 100,000 the last bit of one shows in the second digit."""
    settings = ROPES[name]
    dim = settings.rotary_dim
    x = np.random.default_rng(1).standard_normal((5, 2, 16), np.float32)
    cos, sin = Rope(settings).rows([(start, 3, start > 32), (7, 2, False)])
    turned = x[..., :dim]
    turned = turned * cos[:, None] + np.roll(turned, dim // 2, -1) * sin[:, None]
    wanted = np.concatenate([turned, x[..., dim:]], axis=-1)
    table = np.zeros((4, 1), np.int32)
    slices = [BatchSlice(table, 0, 0, start, 3, start > 32), BatchSlice(table, 0, 3, 7, 2)]
    rope = MlxRope(settings)
    got = np.array(Positions(slices).rotation(rope)(rope.scaled(mx.array(x))))
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=0)


def test_queries_grow_with_their_position() -> None:
    scale = QueryScale(beta=0.5, period=4, offset=1)
    slices = [BatchSlice(np.zeros((1, 1), np.int32), 0, 0, 2, 3)]
    got = np.array(Positions(slices).query_scale(scale, mx.float32)).ravel()
    np.testing.assert_allclose(got, [1.0, 1 + 0.5 * np.log(2), 1 + 0.5 * np.log(2)], rtol=1e-6)
