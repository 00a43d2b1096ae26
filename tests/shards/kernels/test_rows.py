"""Norms, rotations and activations in C against float64."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from swarm_node.shards.formats.blocks.mlp import ACTIVATIONS, MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.kernels.library import address, library
from swarm_node.shards.kernels.rows import NativeNorm, activation_struct

Array = np.ndarray
erfc = np.vectorize(math.erfc)


def normal(size: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def norm_row(norm: NativeNorm, x: Array, at: int = 0) -> Array:
    out = np.empty_like(x)
    library().sn_norm_row(
        ctypes.byref(norm.struct),
        *map(ctypes.c_void_p, (address(x), address(out))),
        ctypes.c_int32(len(x)),
        ctypes.c_int64(at),
    )
    return out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
@pytest.mark.parametrize("count", [1, 8, 40, 100, 576])
def test_norms(count: int, size: float, kind: str, bias: bool) -> None:
    x, weight, shift = (
        normal(count, 1) * np.float32(size) + np.float32(size),
        normal(count, 2),
        normal(count, 3),
    )
    wide = x.astype(np.float64) - (x.astype(np.float64).mean() if kind == "layer" else 0)
    want = wide / np.sqrt((wide**2).mean() + 1e-5) * weight + (shift if bias else 0)
    got = norm_row(NativeNorm(NormConfig(1e-5, kind, bias=bias), weight, shift if bias else None), x)
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-6)


def test_a_norms_weights_from_some_place_on() -> None:
    x, weight, bias = normal(24, 1), normal(72, 2), normal(72, 3)
    config = NormConfig(1e-5, bias=True)
    part = norm_row(NativeNorm(config, weight[24:48], bias[24:48]), x)
    assert np.array_equal(norm_row(NativeNorm(config, weight, bias), x, at=24), part)


def test_what_is_not_finite_shows() -> None:
    x = np.array([1.0, np.nan, 2.0], np.float32)
    assert np.isnan(norm_row(NativeNorm(NormConfig(1e-5), np.ones(3, np.float32)), x)).all()


@pytest.mark.parametrize("rotary", [2, 10, 16])
def test_rotation_of_the_first_dimensions(rotary: int) -> None:
    x, half = normal(3 * 16, 1).reshape(3, 16), rotary // 2
    cos, sin = normal(rotary, 2), normal(rotary, 3)
    want = x.copy()
    turned = x[:, :rotary]
    want[:, :rotary] = turned * cos + np.roll(turned, half, -1) * sin
    library().sn_rotate(
        ctypes.c_void_p(address(x)),
        ctypes.c_int64(16),
        ctypes.c_int32(3),
        *map(ctypes.c_void_p, (address(cos), address(sin))),
        ctypes.c_int32(rotary),
    )
    np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-6)


def activate(mlp: MlpConfig, gate: Array, up: Array | None) -> Array:
    out = gate.copy()
    library().sn_activate(
        ctypes.byref(activation_struct(mlp)),
        ctypes.c_void_p(address(out)),
        ctypes.c_void_p(None if up is None else address(up)),
        ctypes.c_int32(len(out)),
    )
    return out


def reference(mlp: MlpConfig, gate: Array) -> Array:
    """In float64, without ``up``."""
    x = gate.astype(np.float64)
    match mlp.activation:
        case "silu":
            return x / (1 + np.exp(-x))
        case "gelu":
            return x * erfc(-x / math.sqrt(2)) / 2
        case "gelu_tanh":
            with np.errstate(over="ignore"):
                return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "relu":
            return np.maximum(x, 0)
        case "relu2":
            return np.maximum(x, 0) ** 2
        case _:
            x = np.minimum(x, mlp.limit)
            return x / (1 + np.exp(-mlp.alpha * x))


def values(count: int) -> Array:
    """From where exponentials vanish to where activations are the identity."""
    spread = [np.linspace(-9, 9, count), np.linspace(-80, 88, count), normal(count, 1) * 3]
    return np.concatenate(spread).astype(np.float32)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 1536])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, count: int) -> None:
    mlp, gate = MlpConfig(8, name), values(count)
    up = np.full_like(gate, 1.5)
    want = reference(mlp, gate) * (2.5 if name == "clamped" else 1.5)
    # Exponentials of large numbers are as exact as their exponents, which are float32.
    tolerance = np.maximum(8, np.minimum(gate.astype(np.float64) ** 2, 90)) * 2**-23
    off = np.abs(activate(mlp, gate, up) - want)
    assert (off <= np.abs(want) * tolerance + 1e-36).all()


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "clamped"])
def test_without_a_gate(name: str) -> None:
    mlp, x = MlpConfig(8, name, gated=False), values(37)
    assert np.array_equal(activate(mlp, x, None), activate(mlp, x, np.ones_like(x)))


def test_clamped_on_both_sides() -> None:
    mlp = MlpConfig(8, "clamped", alpha=2.0, limit=3.0)
    gate = np.array([9.0, 1.0, 1.0, np.nan], np.float32)
    got = activate(mlp, gate, np.array([1.0, 9.0, -9.0, 1.0], np.float32))
    sigmoid = [1 / (1 + math.exp(-2 * x)) for x in (3, 1)]
    np.testing.assert_allclose(got[:3], [3 * sigmoid[0] * 2, sigmoid[1] * 4, sigmoid[1] * -2], rtol=1e-6)
    assert np.isnan(got[3])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_place_of_a_value_is_nothing_to_it(name: str) -> None:
    mlp, gate, up = MlpConfig(8, name), values(21), normal(63, 2)
    whole = activate(mlp, gate, up)
    for first, end in ((0, 1), (3, 40), (17, 63)):
        assert np.array_equal(activate(mlp, gate[first:end], up[first:end].copy()), whole[first:end])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_what_is_not_finite(name: str) -> None:
    gate = np.array([np.nan, np.inf, -200.0, -0.0, 0.0], np.float32)
    got = activate(MlpConfig(8, name), gate, np.ones_like(gate))
    assert np.isnan(got[0])
    assert got[1] == (np.inf if name != "clamped" else got[1]) > 0
    assert -1e-30 < got[2] <= 0
    assert not got[3:].any()


@pytest.mark.parametrize("count", [1, 16, 37])
def test_sigmoid(count: int) -> None:
    gate, x = values(count), normal(3 * count, 2)
    got = x.copy()
    library().sn_sigmoid_mul(*map(ctypes.c_void_p, (address(got), address(gate))), ctypes.c_int32(len(got)))
    np.testing.assert_allclose(got, x / (1 + np.exp(-gate.astype(np.float64))), rtol=1e-6, atol=1e-36)
