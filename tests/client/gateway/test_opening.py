"""What a gateway has opened is closed, wherever its start fails."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from swarm_node.client.gateway import opening
from swarm_node.client.gateway.opening import open_gateway
from swarm_node.client.local_model import LocalModel
from swarm_node.client.network import ClientNetwork
from swarm_node.swarm.errors import UsageError
from tests.doubles.fake_swarm import FakeSwarm


@pytest.mark.parametrize("fails_at", [0, 1, 2])
async def test_no_model_stays_open(monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    closed: list[str] = []
    whole, swarm = opening.AsyncSwarmModel, FakeSwarm()

    async def given(*_: object) -> tuple[ClientNetwork, list[LocalModel]]:
        names = ("first", "second")
        models = [swarm.local(close=partial(closed.append, name)) for name in names]
        return swarm.client_network(), models

    def made(local: LocalModel, *rest: Any, **options: Any) -> Any:
        nonlocal fails_at
        if not fails_at:
            raise UsageError("it cannot be made")
        fails_at -= 1
        return whole(local, *rest, **options)

    monkeypatch.setattr(opening, "open_models", given)
    monkeypatch.setattr(opening, "AsyncSwarmModel", made)
    with pytest.raises(UsageError):  # with two that are made, since they are the same model
        async with open_gateway(models=["first", "second"], port=0, initial_peers=[]):
            pass
    assert sorted(closed) == ["first", "second"]
