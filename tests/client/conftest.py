"""Where a test says nothing else, decoding is plain and nobody is put on trial."""

from __future__ import annotations

import pytest

from swarm_node.client.session.scout import Scout
from tests.doubles.oracle import send_nothing


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No drafts: many tests count steps, or break the third. Whether a draft is sent depends on what passes
    take, so those that are about drafts decide it themselves: they override this fixture."""
    send_nothing(monkeypatch)


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trials: many tests count what nodes are asked. Those that are about trials override this fixture."""
    monkeypatch.setattr(Scout, "look", lambda self, route: None)
