"""Where torch reads and keeps the states of a batch's sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.determinism_check import check_determinism
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.torch.mixers import states
from swarm_node.swarm.errors import LocalProtocolError, UsageError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.conftest import any_schedule
from tests.shards.models.block_cases import HIDDEN, checkpoint_of
from tests.shards.models.state_cases import STATES

Sessions = Callable[..., Any]
CASES = ("delta", "channels", "mamba", "short convolution", "attention beside mamba", "different states")


def load(case: str, **options: Any) -> SpanBackend[Any]:
    wanted = LoadOptions(**{"dtype": "float32", "quantize": "none", "kernels": "torch", **options})
    return load_backend(checkpoint_of(STATES[case]), Span(0, len(STATES[case])), wanted)


def inputs(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=4e-6 * want.abs().max().item())


FEEDS = (
    [(0, 30), (1, 30), (2, 3), (3, 30), (4, 31)],
    [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)],  # one of them begins here
    [(4, 5), (0, 5), (1, 5), (3, 5), (2, 5)],  # over the end of a page, all but one
    [(2, 64), (3, 64), (0, 1), (1, 1)],
)
"""(session, rows) of each batch: many are cut alike."""


@pytest.mark.parametrize("together", [1, 2500, 1 << 30], ids=["one by one", "a few", "all"])
@pytest.mark.parametrize("case", CASES)
def test_sessions_that_are_cut_alike(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, case: str, together: int
) -> None:
    monkeypatch.setattr(states, "TOGETHER", together)
    model, xs = load(case), [inputs(128, seed) for seed in range(6)]
    fed = sessions(model, count=6, tokens=128, borders=together == 2500)
    made: list[list[torch.Tensor]] = [[] for _ in xs]
    for feed in FEEDS:
        starts = [fed.lengths[session] for session, _ in feed]
        parts = [xs[s][at : at + count] for (s, count), at in zip(feed, starts, strict=True)]
        for (session, _), rows in zip(
            feed, fed.forward(torch.cat(parts), feed).split([count for _, count in feed]), strict=True
        ):
            made[session].append(rows)
    for x, got in zip(xs, made, strict=True):
        count = sum(map(len, got))
        close(torch.cat(got), sessions(model, tokens=128).forward(x[:count]))


@pytest.mark.parametrize("run", [2, 16])
def test_pages_that_are_computed_together(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    """As on other devices; sessions that keep every page's state."""
    x = inputs(200)
    for case in CASES:
        fed = sessions(load(case), tokens=200, borders=True)
        want = torch.cat([fed.forward(rows) for rows in x.split([10, 190])])
        monkeypatch.setattr(states, "RUN_ON_CPU", run)
        again = sessions(load(case), tokens=200, borders=True)
        close(torch.cat([again.forward(rows) for rows in x.split([10, 190])]), want)
        torch.testing.assert_close(again.pool.states, fed.pool.states, rtol=0, atol=1e-5, equal_nan=True)
        monkeypatch.undo()


@pytest.mark.parametrize("case", CASES)
def test_a_session_goes_back_to_a_border(sessions: Sessions, case: str) -> None:
    """Of any page, over what other tokens left in the pages behind it."""
    for deterministic in (False, True):
        model, x = load(case, deterministic=deterministic), inputs(96)
        fed = sessions(model, tokens=96, borders=True)
        want = fed.forward(x)
        for border in (64, 32, 0):
            for rows in (inputs(96, seed=2)[border:], x[border:]):
                fed.lengths[0] = border
                got = fed.forward(rows)
            if deterministic:
                assert torch.equal(got, want[border:])
            close(got, want[border:])


@pytest.mark.parametrize("case", CASES)
def test_a_state_is_kept_where_the_table_names_a_slot(sessions: Sessions, case: str) -> None:
    """Here for the second page alone, and of one session of two."""
    model, x = load(case), inputs(96)
    fed = sessions(model, count=2, tokens=96, borders=True)
    fed.memory.states[:, :, [0, 2]] = -1
    fed.memory.states[1] = -1
    both = fed.forward(torch.cat((x[:80], x[:80])), [(0, 80), (1, 80)])
    fed.lengths[0] = 64
    close(fed.forward(x[64:80]), both[64:80])
    for session, position in ((0, 80), (1, 64)):
        fed.lengths[session] = position
        with pytest.raises(LocalProtocolError, match=f"state before position {position} in block 0"):
            fed.forward(x[:1], [(session, 1)])


KNOWN: dict[str, tuple[SpanBackend[Any], list[torch.Tensor]]] = {}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rowwise_any_schedule_gives_the_bits_of_token_by_token(
    sessions: Sessions, data: st.DataObject
) -> None:
    """Ragged batches of three sessions, which go back to borders of pages, the blocks in two goes."""
    case = data.draw(st.sampled_from(["different states", "attention beside mamba", "qwen 3.5", "mamba"]))
    count, xs = 80, [inputs(80, seed) for seed in range(3)]
    if case not in KNOWN:
        model = load(case, deterministic=True)
        alone = sessions(model, count=3, tokens=count)
        one_by_one = [torch.cat([alone.forward(row, [(s, 1)]) for row in xs[s].split(1)]) for s in range(3)]
        KNOWN[case] = model, one_by_one
    model, want = KNOWN[case]
    fed = sessions(model, count=3, tokens=count, borders=True, seed=data.draw(st.integers(0, 3)))
    for session, start, rows in any_schedule(data, fed, xs, PAGE_TOKENS):
        assert torch.equal(rows, want[session][start : start + len(rows)]), (case, start)


@pytest.mark.parametrize("case", CASES)
def test_a_fork_goes_its_own_way(sessions: Sessions, case: str) -> None:
    fed, x = sessions(load(case, deterministic=True), count=2, tokens=96), inputs(96)
    want = fed.forward(x)
    fed.lengths[0] = 0
    fed.forward(x[:40])
    fed.fork(0, 1)
    fed.forward(inputs(7, seed=3), [(0, 7)])
    assert torch.equal(fed.forward(x[40:], [(1, 56)]), want[40:])


def test_a_slice_without_a_table_is_refused(sessions: Sessions) -> None:
    fed = sessions(load("delta"))
    fed.memory.states = None
    with pytest.raises(LocalProtocolError, match="without a table"):
        fed.forward(inputs(1))


@pytest.mark.parametrize("case", STATES)
def test_the_check_of_determinism_holds(case: str) -> None:
    assert check_determinism(load(case, deterministic=True), "float16")


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantize": "int8"}], ids=str
)
@pytest.mark.parametrize("case", ["qwen 3.5", "channels", "nemotron"])
def test_the_check_holds_in_other_types(case: str, options: dict[str, str]) -> None:
    model = load(case, deterministic=True, **options)
    assert check_determinism(model, "float16")
    assert model.new_pool(1, "float16", 1).states.dtype == torch.float32


@pytest.mark.parametrize("case", ["delta", "short convolution"])
def test_the_check_finds_a_state_that_was_not_taken_back(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    begin = states.Group.begin

    def without_zeros(group: states.Group, block: int) -> Any:
        group._fresh[:] = False
        return begin(group, block)

    monkeypatch.setattr(states.Group, "begin", without_zeros)
    with pytest.raises(UsageError, match="over a step that was taken back"):
        check_determinism(load(case, deterministic=True), "float32")
