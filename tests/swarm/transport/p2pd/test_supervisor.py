"""When a daemon is put in the place of another, when not any more, and when a machine slept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from swarm_node.swarm.errors import LocalNetworkError, NetworkError
from swarm_node.swarm.transport.interface import NetworkChange, NetworkLost, NetworkRestored
from swarm_node.swarm.transport.p2pd.supervisor import (
    BACK_OFF_S,
    HUNG_AFTER_S,
    MOST_DEATHS,
    PING_EVERY_S,
    SETTLED_S,
    SLEPT_S,
    DaemonSupervisor,
)


class Daemon:
    """Ends when told. Its time is its own and passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.keeping: asyncio.Task[LocalNetworkError] | None = None
        self.starts = 0
        self.failing_starts = 0
        self.given_up: LocalNetworkError | None = None
        self.slept: list[float] = []
        self.killed: list[str] = []
        self.asleep_for = 0.0
        self.on_ping: Callable[[], None] = lambda: None
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def is_up(self) -> bool:
        return not self._end.done()

    async def ended(self) -> LocalNetworkError:
        return LocalNetworkError(await asyncio.shield(self._end))

    def die(self, why: str = "it died") -> None:
        if not self._end.done():
            self._end.set_result(why)

    def kill(self, because: str) -> None:
        self.killed.append(because)
        self.die(because)

    async def restart(self) -> None:
        self.starts += 1
        if self.failing_starts:
            self.failing_starts -= 1
            raise NetworkError("it does not start")
        self._end = asyncio.get_running_loop().create_future()

    def give_up(self, error: LocalNetworkError) -> None:
        self.given_up = error

    async def ping(self) -> None:
        self.on_ping()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        if asyncio.current_task() is self.keeping:  # others sleep between looks
            self.slept.append(seconds)
        self.now += seconds + self.asleep_for
        self.asleep_for = 0.0


class Kept:
    """A keeper at work over a Daemon."""

    def __init__(self) -> None:
        self.daemon = Daemon()
        self.settled = 0
        self.changes: list[NetworkChange] = []
        self.keeper = DaemonSupervisor(
            self.daemon, self.daemon.ping, self.settle, clock=lambda: self.daemon.now, sleep=self.daemon.sleep
        )
        self.keeper.watch(self.note)
        self.task = self.daemon.keeping = asyncio.create_task(self.keeper.run())

    async def settle(self) -> None:
        self.settled += 1

    async def note(self, change: NetworkChange) -> None:
        self.changes.append(change)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110  time is ours, there is nothing to wait for
                await asyncio.sleep(0)


async def test_a_daemon_that_died_is_started_again_at_once_and_brought_into_the_network() -> None:
    kept = Kept()
    await kept.until(lambda: kept.daemon.now > SETTLED_S)
    kept.daemon.die("it has stopped")
    await kept.until(lambda: len(kept.changes) == 2)
    lost, restored = kept.changes
    assert lost == NetworkLost("it has stopped")
    assert isinstance(restored, NetworkRestored)
    assert (kept.daemon.starts, kept.settled, kept.daemon.slept) == (1, 1, [])
    kept.task.cancel()


async def test_one_that_dies_again_and_again_is_given_up_after_longer_and_longer_pauses() -> None:
    kept = Kept()
    kept.daemon.on_ping = lambda: kept.daemon.die("it died young")
    error = await asyncio.wait_for(kept.task, 5)
    assert kept.daemon.given_up is error
    assert f"{MOST_DEATHS} libp2p daemons (p2pd)" in error.message
    assert "it died young" in error.message
    assert kept.daemon.slept == [BACK_OFF_S * 2**n for n in range(MOST_DEATHS - 2)]
    assert kept.daemon.starts == MOST_DEATHS - 1


async def test_deaths_of_daemons_that_lived_for_a_while_do_not_add_up() -> None:
    kept = Kept()
    for number in range(2 * MOST_DEATHS):
        began = kept.daemon.now
        await kept.until(lambda began=began: kept.daemon.now > began + SETTLED_S)  # type: ignore[misc]
        kept.daemon.die()
        await kept.until(lambda number=number: kept.settled == number + 1)  # type: ignore[misc]
    assert kept.daemon.given_up is None
    assert kept.daemon.slept == []
    kept.task.cancel()


async def test_starts_that_fail_count_and_one_that_works_ends_the_outage() -> None:
    kept = Kept()
    await kept.until(lambda: kept.daemon.now > SETTLED_S)
    kept.daemon.failing_starts = MOST_DEATHS - 2
    kept.daemon.die()
    await kept.until(lambda: kept.settled == 1)
    assert [type(change) for change in kept.changes] == [NetworkLost, NetworkRestored]
    kept.daemon.failing_starts = MOST_DEATHS
    await kept.until(lambda: kept.daemon.now > 3 * SETTLED_S)
    kept.daemon.die()
    assert "it does not start" in (await asyncio.wait_for(kept.task, 5)).message


async def test_a_daemon_that_cannot_be_asked_is_replaced() -> None:
    kept = Kept()

    def refuse() -> None:
        raise NetworkError("its socket is gone")

    kept.daemon.on_ping = refuse
    await kept.until(lambda: bool(kept.daemon.killed))
    assert kept.daemon.killed == ["could not be asked any more"]
    kept.task.cancel()


@pytest.mark.parametrize(("seconds", "replaced"), [(SLEPT_S / 2, False), (SLEPT_S * 2, True)])
async def test_a_long_sleep_of_the_machine_begins_with_a_new_daemon(seconds: float, replaced: bool) -> None:
    kept = Kept()
    kept.daemon.asleep_for = seconds
    await kept.until(lambda: kept.daemon.now > seconds + 3 * PING_EVERY_S)
    assert bool(kept.daemon.killed) is replaced
    if replaced:
        assert kept.daemon.killed == [f"was replaced, since this computer slept for {seconds:.0f} s"]
    kept.task.cancel()


async def test_a_watcher_that_fails_does_not_end_the_keeping() -> None:
    kept = Kept()

    async def broken(change: NetworkChange) -> None:
        raise RuntimeError("a bug of a watcher")

    kept.keeper.watch(broken)
    kept.daemon.die()
    await kept.until(lambda: kept.settled == 1)
    assert not kept.task.done()
    kept.task.cancel()


async def test_a_time_limit_that_comes_late_says_nothing_of_the_daemon() -> None:
    """The process was stopped with its daemon: the answer is there by the time anybody looks."""
    kept = Kept()
    asked = 0

    async def ping() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            kept.daemon.now += HUNG_AFTER_S * 3
            raise TimeoutError

    kept.keeper._ping = ping
    await kept.until(lambda: asked > 1)
    assert kept.daemon.killed == []
    kept.task.cancel()
