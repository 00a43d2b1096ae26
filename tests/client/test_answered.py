"""A model that has answered is written down once, and one that has not is not."""

from __future__ import annotations

from tests.doubles.fake_swarm import FakeSwarm


async def test_the_first_whole_answer_is_told_of() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    told: list[str] = []
    async with swarm.client(local=swarm.local(answered=lambda: told.append("answered"))) as model:
        async with model.stream("x", max_new_tokens=4) as stream:
            async for _ in stream:
                break
        assert told == [], "it was stopped"
        for _ in range(2):
            await model.generate("x", max_new_tokens=2)
    assert told == ["answered"], "and written before the client is closed"
