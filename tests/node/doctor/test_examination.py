"""Checks that run side by side, whatever they do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from swarm_node.node.doctor.examination import Check, examine, in_thread
from swarm_node.node.doctor.finding import Finding, Health


def ok(name: str) -> Finding:
    return Finding(name, Health.OK, "well")


async def test_they_run_side_by_side_and_are_told_in_order() -> None:
    second_is_done = asyncio.Event()

    async def first() -> Sequence[Finding]:
        await second_is_done.wait()
        return [ok("first")]

    async def second() -> Sequence[Finding]:
        second_is_done.set()
        return [ok("second"), ok("third")]

    found = [each.check async for each in examine([Check("first", first), Check("second", second)])]
    assert found == ["first", "second", "third"]


async def test_one_that_breaks_or_hangs_ends_no_other() -> None:
    async def hang() -> Sequence[Finding]:
        await asyncio.Event().wait()
        return []

    def broken() -> Sequence[Finding]:
        raise ZeroDivisionError("/home/someone")

    checks = [Check("slow", hang, 0.01), in_thread("broken", broken), in_thread("well", lambda: [ok("well")])]
    slow, torn, well = [each async for each in examine(checks)]
    assert (slow.health, slow.says) == (Health.UNKNOWN, "gave no answer within 0.01 s")
    assert (torn.health, torn.says) == (Health.UNKNOWN, "could not be checked: ZeroDivisionError")
    assert torn.details == {"error": "/home/someone"}
    assert "someone" not in str(torn.as_dict(share=True))
    assert well == ok("well")


def test_a_check_that_hangs_in_its_thread_does_not_keep_the_program() -> None:
    never = threading.Event()

    def hang() -> Sequence[Finding]:
        never.wait(60)
        return []

    async def run() -> list[Health]:
        return [each.health async for each in examine([in_thread("hangs", hang, 0.01)])]

    began = time.monotonic()
    assert asyncio.run(run()) == [Health.UNKNOWN]
    assert time.monotonic() - began < 30, "the loop has waited for the thread"
    never.set()
