"""Several coroutines side by side, of which the first to fail ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def all_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run all to their end. Raises what one of them failed of, as it is; the others are cancelled then."""
    if not coroutines:
        return
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as error:
        raise _first_cause(error) from error


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of several at once; a cancellation only where there is nothing else."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if not isinstance(error, asyncio.CancelledError)), flat[0])
