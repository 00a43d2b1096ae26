"""Settings of blocks that keep a state: what a file may not ask for."""

from __future__ import annotations

from typing import Any

import pytest

from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig, ShortConvConfig, StateShape
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from tests.shards.models.state_cases import delta, mamba

REFUSED: dict[str, dict[str, Any]] = {
    "heads of a recurrence cannot be shared": {"key_heads": 3},
    "heads of a recurrence cannot be shared by 2 key heads and 5 groups": {
        "norm_groups": 5,
        "norm_shared": False,
    },
    "taps is 0": {"taps": 0},
    "values of a block's state": {"key_dim": 2**18, "value_dim": 2**12},
    "rule of a recurrence": {"rule": "gated"},
    "decay of a recurrence": {"decay": "value"},
    "gate of a recurrence": {"gate": "relu"},
    "decay_rank is -1": {"decay_rank": -1},
    "beta_scale": {"beta_scale": float("nan")},
    "limited to": {"steps": (0.1, 0.01)},
    "a factor of a recurrence": {"factors": (1.0, float("inf"), 1.0, 1.0, 1.0)},
    "delta rule with a skip": {"skip": True},
    "norm that heads share": {"norm_groups": 1},
    "another norm than RMS": {"norm": NormConfig(1e-5, "layer")},
}


@pytest.mark.parametrize("says", REFUSED)
def test_a_recurrence_that_cannot_be(says: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=says):
        delta(**REFUSED[says])


@pytest.mark.parametrize("changes", [{"decay": "channel"}, {"decay_rank": 4}])
def test_a_plain_recurrence_has_a_decay_a_head(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="with such a decay"):
        mamba(**changes)


@pytest.mark.parametrize("sizes", [(0, 3), (64, 0), (64, 65), (2**30, 3)])
def test_a_short_convolution_that_cannot_be(sizes: tuple[int, int]) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError)):
        ShortConvConfig(*sizes)


def test_what_is_kept() -> None:
    state: RecurrenceConfig = delta()
    assert state.state == StateShape(4, 16, 24, 3, 2 * 2 * 16 + 4 * 24)
    assert state.state.nbytes == 4 * (4 * 16 * 24 + 3 * 160)
    assert ShortConvConfig(64, 3).state.floats == 2 * 64
