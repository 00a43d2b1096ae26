"""Where a test says nothing else, decoding is plain and nobody is put on trial."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from swarm_node.client.drafting.draft_length import DraftPlan, Speculation
from swarm_node.client.session.scout import Scout


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No drafts: many tests count steps, or break the third. Whether a draft is sent depends on what passes
    take, so those that are about drafts decide it themselves: they override this fixture."""

    def plan(self: Speculation, draft: Sequence[object], costs: Sequence[float] = ()) -> DraftPlan:
        return DraftPlan(0, 1.0)

    monkeypatch.setattr(Speculation, "plan", plan)


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trials: many tests count what nodes are asked. Those that are about trials override this fixture."""
    monkeypatch.setattr(Scout, "look", lambda self, route: None)
