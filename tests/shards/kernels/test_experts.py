"""The C router and experts against float64, and a row's bits in any batch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from swarm_node.shards.formats.blocks.experts import MAX_EXPERTS, ExpertsConfig, RouterConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.floats import narrow
from swarm_node.shards.kernels import library
from swarm_node.shards.kernels.experts import HeldExperts, NativeExperts, NativeMlp, router_struct
from swarm_node.shards.kernels.library import ThreadPool, address
from swarm_node.shards.kernels.linear import (
    ActivationPrecision,
    NativeLinear,
    SnLinear,
    native_dense,
    native_int4,
    native_int8,
)
from swarm_node.shards.layers.quantize import to_int4, to_int8_groups
from swarm_node.swarm.runtime.c_build import NativeUnavailableError

try:
    library.library()
except NativeUnavailableError as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

HIDDEN = 64


def exact_softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def best(keys: np.ndarray, most: int) -> list[int]:
    return sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:most]


def exact_sparsemixer(logits: np.ndarray, jitter: float) -> dict[int, float]:
    chosen: dict[int, float] = {}
    for _ in range(2):
        left = [i for i in range(len(logits)) if i not in chosen]
        top = max(left, key=lambda i: (logits[i], -i))
        scale = np.maximum(np.abs(logits), logits[top])
        near = [i for i in left if not (logits[top] - logits[i]) / scale[i] > 2 * jitter]
        chosen[top] = float(1 / np.exp(logits[near] - logits[top]).sum())
    return chosen


def exact_route(
    router: RouterConfig,
    used: int,
    logits: np.ndarray,
    correction: np.ndarray | None,
    expert_scale: np.ndarray | None,
) -> tuple[dict[int, float], float]:
    """Experts and weights in float64, and by how little the choice was made."""
    logits = logits.astype(np.float64)
    margin = np.inf
    if router.scores == "sparsemixer":
        weights = exact_sparsemixer(logits, router.jitter)
    else:
        scores = {"softmax": exact_softmax, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}.get(
            router.scores, lambda x: x
        )(logits)
        keys = scores if correction is None else scores + correction
        groups = keys.reshape(router.groups, -1)
        if router.used_groups < router.groups:
            ordered = np.sort(groups, 1)[:, ::-1]
            of_group = ordered[:, 0] if router.group_scores == "max" else ordered[:, :2].sum(1)
            open_groups = best(of_group, router.used_groups)
            ranked = np.sort(of_group)[::-1]
            margin = ranked[router.used_groups - 1] - ranked[router.used_groups]
            closed = np.ones(router.groups, bool)
            closed[open_groups] = False
            keys = np.where(np.repeat(closed, groups.shape[1]), -np.inf, keys)
        chosen = best(keys, used)
        if used < len(keys):
            rest = np.delete(keys, chosen)
            margin = min(margin, keys[chosen].min() - rest.max())
        weights = {i: scores[i] for i in chosen}
        if router.scores == "softmax_of_used":
            weights = dict(zip(chosen, exact_softmax(logits[chosen]), strict=True))
    if router.renormalise:
        total = sum(weights.values()) + router.sum_floor
        weights = {i: weight / total for i, weight in weights.items()}
    scale = np.ones(len(logits)) if expert_scale is None else expert_scale
    return {i: weight * router.scaling * scale[i] for i, weight in weights.items()}, float(margin)


def route(
    router: RouterConfig,
    used: int,
    logits: np.ndarray,
    correction: np.ndarray | None = None,
    expert_scale: np.ndarray | None = None,
) -> tuple[list[int], np.ndarray]:
    """``sn_route`` of one row."""
    struct = router_struct(router, SnLinear(), correction, expert_scale)
    scores = logits.astype(np.float32)
    experts, weights = np.zeros(used, np.int32), np.zeros(used, np.float32)
    library.library().sn_route(
        *(ctypes.byref(struct), ctypes.c_int32(len(logits)), ctypes.c_int32(used)),
        *(ctypes.c_void_p(address(array)) for array in (scores, experts, weights)),
    )
    return experts.tolist(), weights


def held(weight: np.ndarray, form: str, bias: np.ndarray | None = None) -> NativeLinear:
    if form == "int4":
        return native_int4([to_int4(weight)], bias, ActivationPrecision.EXACT)
    if form == "int8":
        return native_int8([to_int8_groups(weight)], bias, ActivationPrecision.EXACT)
    return native_dense([narrow(weight, form)], bias)


def values(weight: np.ndarray, form: str) -> np.ndarray:
    """What ``held`` stands for."""
    if form == "int4":
        return to_int4(weight).dequantize()
    if form == "int8":
        return to_int8_groups(weight).dequantize()
    return weight.astype(np.float32)


def mlp_weights(config: MlpConfig, seed: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Gate and up stacked, and down, each with its bias."""
    rng = np.random.default_rng(seed)
    shapes = ((config.inner * (2 if config.gated else 1), HIDDEN), (HIDDEN, config.inner))
    return [
        (
            (rng.standard_normal(shape) * shape[1] ** -0.5).astype(np.float32),
            rng.standard_normal(shape[0]).astype(np.float32) if config.bias else None,
        )
        for shape in shapes
    ]


def native_mlp(config: MlpConfig, seed: int, form: str) -> NativeMlp:
    return NativeMlp(*(held(weight, form, bias) for weight, bias in mlp_weights(config, seed)))


def experts_of(
    config: ExpertsConfig,
    form: str,
) -> NativeExperts:
    rng = np.random.default_rng(config.count)
    router = held(
        rng.standard_normal((config.count, HIDDEN)).astype(np.float32),
        "float32",
        rng.standard_normal(config.count).astype(np.float32) if config.router.bias else None,
    )
    gate = rng.standard_normal((1, HIDDEN)).astype(np.float32)
    mlps = [native_mlp(config.mlp, seed, form) for seed in range(config.count)]
    return NativeExperts(
        config,
        HIDDEN,
        router,
        HeldExperts(config.mlp, mlps),
        shared=None if config.shared is None else native_mlp(config.shared, config.count, form),
        shared_gate=held(gate, "float32") if config.shared_gate else None,
    )


def exact_mlp(config: MlpConfig, seed: int, form: str, x: np.ndarray) -> np.ndarray:
    (first, first_bias), (down, down_bias) = mlp_weights(config, seed)
    inner = x @ values(first, form).T.astype(np.float64) + (0 if first_bias is None else first_bias)
    if config.gated:
        gate, up = np.split(inner, 2, axis=-1)
        if config.activation == "clamped":
            gate, up = np.minimum(gate, config.limit), np.clip(up, -config.limit, config.limit) + 1
            inner = gate / (1 + np.exp(-config.alpha * gate)) * up
        else:
            inner = gate / (1 + np.exp(-gate)) * up
    else:
        inner = np.maximum(inner, 0) ** 2
    return inner @ values(down, form).T.astype(np.float64) + (0 if down_bias is None else down_bias)


def exact_experts(config: ExpertsConfig, form: str, x: np.ndarray, router_x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(config.count)
    weight = rng.standard_normal((config.count, HIDDEN)).astype(np.float32)
    bias = rng.standard_normal(config.count).astype(np.float32) if config.router.bias else 0
    gate = rng.standard_normal((1, HIDDEN)).astype(np.float32)
    out = np.zeros(x.shape)
    for row, logits in enumerate(router_x @ weight.T.astype(np.float64) + bias):
        weights, _ = exact_route(config.router, config.used, logits, None, None)
        for expert, share in weights.items():
            if config.router.scale_input:
                out[row] += exact_mlp(config.mlp, expert, form, x[row] * share)
            else:
                out[row] += share * exact_mlp(config.mlp, expert, form, x[row])
    if config.shared is not None:
        both = exact_mlp(config.shared, config.count, form, x)
        out += both / (1 + np.exp(-x @ gate[0])[:, None]) if config.shared_gate else both
    return out


SWIGLU = MlpConfig(96)


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=12, max_size=12),
    correction=st.none() | st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12),
    scale=st.none() | st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12),
    scores=st.sampled_from(("softmax", "sigmoid", "softmax_of_used", "sparsemixer")),
    groups=st.sampled_from(((1, 1), (4, 2), (3, 1), (6, 6))),
    top2=st.booleans(),
    renormalise=st.booleans(),
    used=st.integers(1, 4),
)
def test_the_router_chooses_and_weighs_as_float64_does(
    logits: list[float],
    correction: list[float] | None,
    scale: list[float] | None,
    scores: str,
    groups: tuple[int, int],
    top2: bool,
    renormalise: bool,
    used: int,
) -> None:
    if scores == "sparsemixer":
        used, groups, correction = 2, (1, 1), None
    router = RouterConfig(
        scores,
        correction=correction is not None,
        groups=groups[0],
        used_groups=groups[1],
        group_scores="top2" if top2 else "max",
        renormalise=renormalise,
        sum_floor=1e-20,
        scaling=2.5,
        expert_scale=scale is not None,
        jitter=0.01,
    )
    arrays = [None if x is None else np.array(x, np.float32) for x in (correction, scale)]
    wanted, margin = exact_route(router, used, np.array(logits, np.float32), *arrays)
    assume(margin > 1e-6)  # else float32 may choose otherwise
    if scores == "sparsemixer":
        ordered = np.sort(np.array(logits, np.float32))
        assume(np.diff(ordered)[-3:].min() > 1e-3)
    experts, weights = route(router, used, np.array(logits), *arrays)
    assert experts == sorted(wanted)
    np.testing.assert_allclose(weights, [wanted[i] for i in experts], rtol=3e-6, atol=1e-12)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "softmax_of_used"])
def test_of_equal_scores_the_lower_expert_wins(scores: str) -> None:
    router = RouterConfig(scores)
    assert route(router, 3, np.zeros(8))[0] == [0, 1, 2]
    assert route(router, 3, np.array([0, 1, 0, 1, 0, 1, 0, 1]))[0] == [1, 3, 5]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "softmax_of_used", "sparsemixer"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_choose_each_expert_once_and_show(scores: str, bad: float) -> None:
    router = RouterConfig(scores)
    experts, weights = route(router, 2, np.full(8, bad))
    assert experts == [0, 1]
    assert np.isnan(weights).all() or (scores == "sigmoid" and not np.isnan(bad))
    logits = np.arange(8.0)
    logits[3] = np.nan
    experts, weights = route(router, 2, logits)
    assert 0 <= experts[0] < experts[1] < 8
    if scores == "softmax":
        assert np.isnan(weights).all()


def test_the_most_experts_in_the_worst_order_are_chosen_in_time() -> None:
    experts, weights = route(RouterConfig(), MAX_EXPERTS, np.linspace(-1, 1, MAX_EXPERTS))
    assert experts == list(range(MAX_EXPERTS))
    assert weights.sum() == pytest.approx(1, rel=1e-4)


CASES = {
    "softmax": (ExpertsConfig(16, 4, SWIGLU, RouterConfig()), "float32"),
    "bf16": (ExpertsConfig(16, 4, SWIGLU, RouterConfig(renormalise=False)), "bfloat16"),
    "int4": (ExpertsConfig(16, 4, SWIGLU, RouterConfig(), shared=MlpConfig(32), shared_gate=True), "int4"),
    "int8": (ExpertsConfig(16, 2, SWIGLU, RouterConfig("sigmoid"), shared=MlpConfig(160)), "int8"),
    "biases": (
        ExpertsConfig(8, 3, MlpConfig(64, "clamped", bias=True), RouterConfig("softmax_of_used", bias=True)),
        "int4",
    ),
    "scaled input": (
        ExpertsConfig(8, 1, SWIGLU, RouterConfig("sigmoid", renormalise=False, scale_input=True)),
        "int8",
    ),
    "no gate": (ExpertsConfig(8, 2, MlpConfig(64, "relu2", gated=False), RouterConfig()), "float32"),
    "uneven": (ExpertsConfig(8, 2, MlpConfig(50), RouterConfig()), "float32"),
}


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize(("config", "form"), CASES.values(), ids=CASES)
def test_experts_are_the_weighted_sum_of_their_mlps(config: ExpertsConfig, form: str) -> None:
    x, router_x = rows(70), rows(70, 1)
    wanted = exact_experts(config, "float32" if form == "bfloat16" else form, x, router_x)
    got = experts_of(config, form)(x, router_x)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < (1e-2 if form == "bfloat16" else 3e-6)


@pytest.mark.parametrize(("config", "form"), CASES.values(), ids=CASES)
def test_a_rows_bits_are_the_same_in_any_batch_on_any_threads(config: ExpertsConfig, form: str) -> None:
    experts, x, pool = experts_of(config, form), rows(131), ThreadPool(3)
    alone = np.concatenate([experts(row[None]) for row in x])
    for size in (131, 64, 7):
        parts: Sequence[np.ndarray] = [x[i : i + size] for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate([experts(part) for part in parts]), alone)
        assert np.array_equal(np.concatenate([experts(part, pool=pool) for part in parts]), alone)


def test_a_row_that_is_no_number_spoils_no_other() -> None:
    config, form = CASES["int4"]
    experts, x = experts_of(config, form), rows(9)
    clean = experts(x)
    x[4] = np.nan
    got = experts(x)
    assert np.isnan(got[4]).all()
    assert np.array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))
