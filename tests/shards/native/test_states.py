"""Sessions whose blocks keep a state, in C: where it comes from and goes, on which no bit depends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.layers.state_pool import StatePool
from swarm_node.shards.models.load_plan import LoadOptions, resolve
from swarm_node.shards.native.span import NativeSpan, load_native_span
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import HIDDEN, checkpoint_of
from tests.shards.models.state_cases import STATES

Sessions = Callable[..., Any]
KINDS = ["delta", "channels", "mamba", "short convolution", "attention beside mamba", "different states"]


def span_of(case: str, threads: int = 1) -> NativeSpan:
    blocks = STATES[case]
    plan = resolve(LoadOptions(quantize="none", kernels="native"), "F32")
    return load_native_span(checkpoint_of(blocks), Span(0, len(blocks)), plan, threads=threads)


def inputs(tokens: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn((tokens, HIDDEN), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", KINDS)
def test_a_session_goes_back_to_a_border(sessions: Sessions, case: str) -> None:
    """Of any page, over what other tokens left in the pages behind it."""
    fed, x = sessions(span_of(case), tokens=96, borders=True), inputs()
    want = fed.forward(x)
    for border in (64, 32, 0):
        for rows in (inputs(seed=2)[border:], x[border:]):
            fed.lengths[0] = border
            got = fed.forward(rows)
        assert torch.equal(got, want[border:])


@pytest.mark.parametrize("case", KINDS)
def test_a_fork_goes_its_own_way(sessions: Sessions, case: str) -> None:
    fed, x = sessions(span_of(case, 2), count=2, tokens=96), inputs()
    want = fed.forward(x)
    fed.lengths[0] = 0
    fed.forward(x[:40])
    fed.fork(0, 1)
    fed.forward(inputs(7, seed=3), [(0, 7)])
    assert torch.equal(fed.forward(x[40:], [(1, 56)]), want[40:])


@settings(max_examples=15)
@given(data=st.data())
def test_any_slots_any_batches_any_threads(sessions: Sessions, data: st.DataObject) -> None:
    """Pages keep their state in a slot of their own, in that of a page before them, or nowhere, where none of
    the next batches begins behind them; other sessions are computed with this one."""
    case, tokens = data.draw(st.sampled_from(KINDS)), 200
    pages, x = -(-tokens // PAGE_TOKENS), inputs(tokens)
    want = sessions(span_of(case), tokens=tokens).forward(x)
    fed = sessions(span_of(case, data.draw(st.integers(1, 3))), count=3, tokens=tokens, borders=True)
    cuts = sorted(data.draw(st.sets(st.integers(1, tokens - 1), max_size=5)))
    begun = {(cut - 1) // PAGE_TOKENS for cut in cuts}
    for page in range(pages):
        how = data.draw(st.sampled_from(["own", "shared", "none"]))
        if how == "none" and page not in begun:
            fed.memory.states[0, :, page] = -1
        elif how == "shared" and page:
            fed.memory.states[0, :, page] = np.where(
                fed.memory.states[0, :, page - 1] < 0,
                fed.memory.states[0, :, page],
                fed.memory.states[0, :, page - 1],
            )
    got = []
    for start, end in zip([0, *cuts], [*cuts, tokens], strict=True):
        steps = [(session, data.draw(st.integers(1, 30))) for session in (1, 2) if data.draw(st.booleans())]
        steps.insert(data.draw(st.integers(0, len(steps))), (0, end - start))
        batch = {session: inputs(count, seed=session) for session, count in steps}
        batch[0] = x[start:end]
        parts = fed.forward(torch.cat([batch[session] for session, _ in steps]), steps)
        got.append(parts.split([count for _, count in steps])[[s for s, _ in steps].index(0)])
    assert torch.equal(torch.cat(got), want)


@pytest.mark.parametrize("case", ["delta", "short convolution", "attention beside mamba"])
def test_slices_without_their_states_are_refused(sessions: Sessions, case: str) -> None:
    fed, x = sessions(span_of(case), tokens=96, borders=True), inputs()
    states = fed.memory.states
    states[..., [0, 2]] = -1
    fed.forward(x[:80])
    with pytest.raises(LocalProtocolError, match="state before position 80"):
        fed.forward(x[80:])
    fed.lengths[0] = 64
    for wrong in (-2, fed.pool.n_states):
        states[0, -1, 2] = wrong
        with pytest.raises(LocalProtocolError, match=f"one beyond the {fed.pool.n_states} slots"):
            fed.forward(x[64:65])
        fed.lengths[0] = 64
    for other in (
        None,
        states[:, :, 1:],
        states.astype(np.int64),
        states.swapaxes(1, 2).copy().swapaxes(1, 2),
    ):
        fed.memory.states = other
        with pytest.raises(LocalProtocolError):
            fed.forward(x[64:65])
        fed.lengths[0] = 64
    fed.memory.states, fed.pool.states = states, StatePool(fed.pool.n_states, ())
    with pytest.raises(LocalProtocolError, match="this model has"):
        fed.forward(x[64:65])
