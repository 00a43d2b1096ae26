"""Sessions whose blocks keep a state on MLX: going back, forks, and what the slots hold."""

from __future__ import annotations

import gc

import mlx.core as mx
import pytest
import torch

from swarm_node.shards.mlx.span import MlxSpan
from swarm_node.shards.mlx.tensors.device import KEPT_BYTES
from swarm_node.swarm.errors import LocalProtocolError
from tests.shards.conftest import Sessions
from tests.shards.mlx.mlx_cases import loaded
from tests.shards.models.block_cases import HIDDEN, checkpoint_of
from tests.shards.models.state_cases import STATES

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
KINDS = ["delta", "channels", "mamba", "different states"]


def span_of(case: str) -> MlxSpan:
    return loaded(checkpoint_of(STATES[case]))


def inputs(tokens: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn((tokens, HIDDEN), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", KINDS)
def test_a_session_goes_back_to_a_border(case: str) -> None:
    """Of any page, over what other tokens left in the pages behind it."""
    fed, x = Sessions(span_of(case), tokens=96, borders=True), inputs()
    want = fed.forward(x)
    for border in (64, 32, 0):
        for rows in (inputs(seed=2)[border:], x[border:]):
            fed.lengths[0] = border
            got = fed.forward(rows)
        torch.testing.assert_close(got, want[border:], **CLOSE)


@pytest.mark.parametrize("case", KINDS)
def test_a_fork_goes_its_own_way(case: str) -> None:
    fed, x = Sessions(span_of(case), count=2, tokens=96), inputs()
    want = fed.forward(x)
    fed.lengths[0] = 0
    fed.forward(x[:40])
    fed.fork(0, 1)
    fed.forward(inputs(seed=3)[:7], [(0, 7)])
    torch.testing.assert_close(fed.forward(x[40:], [(1, 56)]), want[40:], **CLOSE)
    with pytest.raises(ValueError, match="2 sources, 1 targets"):
        fed.pool.copy_states([0, 1], [2])


@pytest.mark.parametrize("case", ["delta", "short convolution", "attention beside mamba"])
def test_a_state_is_kept_where_the_table_names_a_slot(case: str) -> None:
    """Here for the second page alone."""
    fed, x = Sessions(span_of(case), tokens=96, borders=True), inputs()
    fed.memory.states[..., [0, 2]] = -1
    want = fed.forward(x[:80])[64:]
    fed.lengths[0] = 64
    torch.testing.assert_close(fed.forward(x[64:80]), want, **CLOSE)
    with pytest.raises(LocalProtocolError, match="state before position 80"):
        fed.forward(x[80:])


def test_a_slot_without_such_a_state_is_an_error() -> None:
    fed = Sessions(span_of("different states"), tokens=64)
    fed.lengths[0] = 5
    with pytest.raises(LocalProtocolError, match="holds no state"):
        fed.forward(inputs(1))
    fed.lengths[0] = 0
    fed.forward(inputs(5))
    fed.memory.states[0][:2] = fed.memory.states[0][[1, 0]].copy()  # those of blocks of other shapes
    with pytest.raises(LocalProtocolError, match="holds no state"):
        fed.forward(inputs(1))


def test_a_slice_without_states_is_an_error() -> None:
    fed = Sessions(span_of("delta"), tokens=64)
    fed.memory.states = None
    with pytest.raises(LocalProtocolError, match="without a state for block 0"):
        fed.forward(inputs(3))


def test_a_failed_pass_writes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = span_of("delta")
    fed, x = Sessions(model, tokens=64), inputs(12)
    want = fed.forward(x)[8:]
    fed.lengths[0] = 0
    fed.forward(x[:8])
    before = list(fed.pool.states)
    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fed.forward(x[8:])
    assert all(ours is theirs for ours, theirs in zip(fed.pool.states, before, strict=True))
    fed.lengths[0] = 8
    torch.testing.assert_close(fed.forward(x[8:]), want, **CLOSE)


@pytest.mark.parametrize("case", ["delta", "channels", "mamba", "short convolution"])
def test_slots_hold_their_own_states_and_no_more(case: str) -> None:
    """Many were made at once: what is left of them keeps none of the others' memory."""
    model = span_of(case)
    fed = Sessions(model, count=3, tokens=96, borders=True)

    def left(sessions: int) -> int:
        """Bytes, with the states of the last of them alone."""
        fed.lengths[:] = [0] * 3
        fed.forward(torch.cat([inputs(96, seed) for seed in range(3)]), [(0, 96), (1, 96), (2, 96)])
        for length in (80, 81):
            fed.lengths[:] = [length] * 3
            fed.forward(inputs(3, seed=4), [(0, 1), (1, 1), (2, 1)])
        for slot in fed.memory.states[: 3 - sessions].ravel().tolist():
            fed.pool.states[slot] = None
        gc.collect()
        return mx.get_active_memory()

    before, states = left(0), 3 * len(model.span) * model.config.blocks[0].state.state.nbytes
    # MLX may use a buffer again for an array that is somewhat smaller.
    assert states <= left(1) - before <= 1.5 * states


def test_buffers_of_states_are_used_again() -> None:
    model = span_of("delta")
    nbytes = model.config.blocks[0].state.state.nbytes
    before = mx.set_cache_limit(KEPT_BYTES)
    try:
        for n_states, most in ((5, 5), (9, 9), (2, 9)):
            model.new_pool(1, "float32", n_states)
            limit = mx.set_cache_limit(KEPT_BYTES + most * nbytes)
            assert limit == KEPT_BYTES + most * nbytes
    finally:
        mx.set_cache_limit(before)
