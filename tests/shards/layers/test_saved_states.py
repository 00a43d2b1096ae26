"""Slices that begin with a saved state, or save one in the middle of a page, on every executor."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import LocalProtocolError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.conftest import Sessions
from tests.shards.models.block_cases import HIDDEN, checkpoint_of
from tests.shards.models.state_cases import STATES

TOKENS = 160
EXECUTORS: dict[str, dict[str, Any]] = {
    "native": {"kernels": "native"},
    "torch": {"kernels": "torch"},
    "rowwise": {"kernels": "torch", "deterministic": True},
    "mlx": {"device": "mlx"},
}
CASES = ("delta", "mamba", "short convolution", "attention beside mamba", "different states")


def load(case: str, executor: str) -> Any:
    options = LoadOptions(dtype="float32", quantize="none", **EXECUTORS[executor])
    return load_backend(checkpoint_of(STATES[case]), Span(0, len(STATES[case])), options)


class Drafts:
    """A session of tokens ``x`` that saves the state before each of its steps; another is fed beside it."""

    def __init__(self, model: Any, x: torch.Tensor) -> None:
        self.fed, self.x = Sessions(model, 3, TOKENS, borders=True), x
        self.memory, self.model = self.fed.memory, model
        self.saved = self.memory.states[2, :, 0].copy()  # of the third session, which is never fed
        self.at = self.beside = 0
        self.saved_at: int | None = None

    def step(self, start: int, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """``rows`` from ``start`` on, in the middle of a page; the state is held, or saved, or neither."""
        states, page = self.memory.states[0], start // PAGE_TOKENS
        first, border = start, page * PAGE_TOKENS
        if start == self.at:
            self.saved, states[:, page] = states[:, page].copy(), self.saved
        elif start != self.saved_at:
            first = border
        part = self.memory.slice(first, len(rows) + start - first, row=len(other))
        part = replace(part, saved=self.saved, again=start - first)
        beside = [self.memory.slice(self.beside, len(other), session=1)] if len(other) else []
        x = torch.cat([other, self.x[first:start], rows]).numpy()
        out = torch.from_numpy(self.model.forward(x, [*beside, part], self.memory.pool))
        self.beside += len(other)
        self.at, self.saved_at = start + len(rows), start
        return out[len(other) + start - first :]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_begins_again_where_its_state_was_saved(executor: str, case: str) -> None:
    model, rng = load(case, executor), random.Random(case)
    x = torch.randn((TOKENS, HIDDEN), generator=torch.Generator().manual_seed(1))
    wrong = torch.randn((TOKENS, HIDDEN), generator=torch.Generator().manual_seed(2))
    want = Sessions(model, tokens=TOKENS).forward(x)
    drafts = Drafts(model, x)
    drafts.fed.forward(x[:PAGE_TOKENS])
    drafts.fed.forward(x[PAGE_TOKENS : PAGE_TOKENS + 1])
    position = drafts.at = PAGE_TOKENS + 1
    ways = set()
    while position < TOKENS - 40:
        right = rng.randint(1, 6)
        rows = torch.cat([x[position : position + right], wrong[: rng.choice([0, 1, 5, 27])]])
        other = wrong[drafts.beside : drafts.beside + rng.choice([0, 1])]
        ways.add("live" if position == drafts.at else "saved" if position == drafts.saved_at else "border")
        got = drafts.step(position, rows, other)[:right]
        if executor in ("native", "rowwise"):
            assert torch.equal(got, want[position : position + right])
        torch.testing.assert_close(got, want[position : position + right], atol=3e-5, rtol=3e-5)
        if rng.random() < 0.4:
            continue  # the whole step comes again, with other guesses
        position += right
        if not position % PAGE_TOKENS:  # it goes on in the middle of the next page
            drafts.fed.lengths[0] = position
            drafts.fed.forward(x[position : position + 1])
            position += 1
            drafts.at, drafts.saved_at = position, None
        elif position // PAGE_TOKENS != (position - right) // PAGE_TOKENS:
            drafts.saved_at = None
    assert ways == {"live", "saved", "border"}


def test_slices_whose_saved_state_does_not_fit_are_refused(sessions: type[Sessions]) -> None:
    fed, x = sessions(load("delta", "native"), tokens=64, borders=True), torch.ones((9, HIDDEN))
    fed.forward(x)
    part = fed.memory.slice(9, 9)
    slots = part.states[:, 0].copy()
    for wrong in (slots[1:], slots.astype(np.int64), slots - slots - 1, slots * 0 + fed.pool.n_states):
        with pytest.raises(LocalProtocolError):
            fed.model.forward(x.numpy(), [replace(part, saved=wrong)], fed.pool)
    for again in (-1, 9):
        with pytest.raises(LocalProtocolError):
            fed.model.forward(x.numpy(), [replace(part, saved=slots, again=again)], fed.pool)
