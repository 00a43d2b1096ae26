"""The error that a reader sees without the exact rows is the true one."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import BF16, F8, INT8, NONE
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.fidelity.row_error import exact_errors, row_errors, usable_weights

WIDTH = 512


def rows(seed: int = 1) -> np.ndarray:
    """Channels of many sizes, and one massive value."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((64, WIDTH)) * np.exp(random.standard_normal(WIDTH) * 0.7)
    values[0, 7] = 1e5
    return values.astype(np.float32)


def weights(seed: int = 2) -> np.ndarray:
    return usable_weights(
        np.exp(np.random.default_rng(seed).standard_normal(WIDTH) * 0.3).astype(np.float32), WIDTH
    )


@pytest.mark.parametrize(
    "codec",
    [INT8, F8, Int8sCodec.of(ScaleTable.from_rms(np.sqrt(np.square(rows()[1:]).mean(axis=0))))],
    ids=lambda codec: codec.kind,
)
def test_the_estimate_is_near_the_true_error(codec: Codec) -> None:
    x, w = rows(), weights()
    payload = codec.encode(x)
    estimated = row_errors(codec, payload, len(x), np.square(w, dtype=np.float64))
    true = exact_errors(x, codec.decode(payload, *x.shape), np.square(w, dtype=np.float64))
    assert estimated == pytest.approx(true, rel=0.35)
    assert estimated.mean() == pytest.approx(true.mean(), rel=0.06)


@pytest.mark.parametrize("codec", [NONE, BF16], ids=lambda codec: codec.kind)
def test_fine_codecs_have_no_error_that_counts(codec: Codec) -> None:
    x = rows()
    assert not codec.is_coarse
    assert not row_errors(codec, codec.encode(x), len(x), np.square(weights(), dtype=np.float64)).any()


@pytest.mark.parametrize("codec", [INT8, F8], ids=lambda codec: codec.kind)
def test_rows_of_zeros_and_exact_rows_have_no_error(codec: Codec) -> None:
    x = np.zeros((2, WIDTH), np.float32)
    x[1, :4] = 5.0
    assert codec.is_coarse
    assert row_errors(codec, codec.encode(x), 2, np.ones(WIDTH)).max() < 1e-20


@pytest.mark.parametrize(
    "given",
    [None, np.zeros(4, np.float32), np.array([1, np.nan, 1, 1], np.float32), np.array([1, np.inf, 1, 1])],
)
def test_weights_that_say_nothing_are_all_one(given: np.ndarray | None) -> None:
    assert usable_weights(given, 4).tolist() == [1, 1, 1, 1]


def test_weights_are_magnitudes_above_0() -> None:
    found = usable_weights(np.array([-2.0, 0.0, 1.0], np.float32), 3)
    assert found.tolist() == [2.0, 2.0**-11, 1.0]
