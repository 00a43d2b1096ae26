"""Running checks side by side: each has a time, and none that breaks ends the others."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from .finding import Finding, Health

logger = logging.getLogger(__name__)

Look = Callable[[], Coroutine[object, object, Sequence[Finding]]]


@dataclass(frozen=True, slots=True)
class Check:
    """``limit_s``: seconds that it may take."""

    name: str
    look: Look
    limit_s: float = 30.0


def in_thread(name: str, look: Callable[[], Sequence[Finding]], limit_s: float = 30.0) -> Check:
    """A check that blocks. One that exceeds its time goes on in its thread, unheard: nobody waits for it, as
    asyncio would for a thread of its own, when the program ends."""

    async def heard() -> Sequence[Finding]:
        told: Future[Sequence[Finding]] = Future()
        told.set_running_or_notify_cancel()  # from now on it cannot be cancelled: who waits may go

        def work() -> None:
            try:
                told.set_result(look())
            except Exception as error:  # noqa: BLE001 - it is raised where the check is awaited
                told.set_exception(error)

        threading.Thread(target=work, name=f"doctor-{name}", daemon=True).start()
        return await asyncio.wrap_future(told)

    return Check(name, heard, limit_s)


async def examine(checks: Sequence[Check]) -> AsyncIterator[Finding]:
    """What they find, in their order, each as soon as those before it are done."""
    looks = [asyncio.create_task(_findings(check), name=f"doctor-{check.name}") for check in checks]
    try:
        for look in looks:
            for finding in await look:
                yield finding
    finally:
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)


async def _findings(check: Check) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(check.limit_s):
            return await check.look()
    except TimeoutError:
        return [Finding(check.name, Health.UNKNOWN, f"gave no answer within {check.limit_s:g} s")]
    except Exception as error:  # the others are to go on
        logger.debug("a check failed", exc_info=error)
        return [
            Finding(
                check.name,
                Health.UNKNOWN,
                f"could not be checked: {type(error).__name__}",
                details={"error": str(error)},
            )
        ]
