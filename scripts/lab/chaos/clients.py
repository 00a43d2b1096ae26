"""The clients of the chaos test as their parent sees them: some that stream, and one that fills KV caches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from ..processes.child import Launch
from ..processes.worker import Worker
from ..soak.verdict import log_problems
from .nodes import Slot, end_daemon_of
from .places import Places
from .watch import Fault, Watch

LEAVE_S = 90.0
"""For the answers that are still made when the clients are told to stop."""
REST_S = 15.0
"""Between two ends of one client's p2pd: a process gives up when its daemons keep dying young."""


class ChaosClients:
    """One process for each of ``streams``, with that number of streams. Use as a context manager."""

    def __init__(
        self, *, streams: Sequence[int], launch: Launch, places: Places, kv_filler: bool, **options: Any
    ) -> None:
        """``options`` are those of ``client.ChaosClient``. The processes start at once."""
        self._clients: list[Worker] = []
        self._kv_filler: Worker | None = None
        self._daemon_ended = [-REST_S] * len(streams)
        try:
            for number, own_streams in enumerate(streams):
                own = {**options, "streams": own_streams, "prefix_cache": number % 2 == 0}
                with places.inside(f"client {number}"):
                    self._clients.append(
                        Worker("scripts.lab.chaos.client:stream_answers", launch=launch, **own)
                    )
            if kv_filler:
                peers = {"initial_peers": options["initial_peers"]}
                with places.inside("kv_filler"):
                    self._kv_filler = Worker(
                        "scripts.lab.chaos.kv_filler:fill_on_order", launch=launch, **peers
                    )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        for process in [*self._clients, *([self._kv_filler] if self._kv_filler else [])]:
            process.wait_for("ready")

    def undisturbed(self) -> list[list[int]]:
        """Every prompt's answer, while nobody else asks and nothing fails."""
        self._clients[0].order(order="answer")
        answers: list[list[int]] = self._clients[0].wait_for("answered")["token_ids"]
        return answers

    def go(self, expected: list[list[int]]) -> None:
        for client in self._clients:
            client.order(order="go", expected=expected)

    def poll(self, watch: Watch) -> None:
        """Pass on what clients said. Raises ProcessFailedError for one that has ended."""
        for number, client in enumerate(self._clients):
            for event in client.take():
                watch.take(number, event)
            if not client.is_running:
                client.wait_for("anything", timeout=5)  # raises, with what it said last

        if self._kv_filler is not None:
            for event in self._kv_filler.take():
                watch.note(time.monotonic(), event.pop("event"), **event)

    def end_a_daemon(self, pick: float) -> Fault | None:
        """SIGKILL one client's p2pd; None if every one's has been too lately."""
        now = time.monotonic()
        rested = [n for n, ended in enumerate(self._daemon_ended) if now - ended > REST_S]
        if not rested:
            return None
        number = rested[int(pick * len(rested))]
        self._daemon_ended[number] = now
        end_daemon_of(self._clients[number].pid)
        return Fault("p2pd of a client", now, client=number, ended=now)

    def fill(self, slot: Slot, seconds: float) -> None:
        """Fill a node's KV cache for a while."""
        if self._kv_filler is not None:
            self._kv_filler.order(peer=slot.peer, maddrs=slot.maddrs, blocks=slot.span, seconds=seconds)

    def leave(self, watch: Watch) -> list[str]:
        """Let every stream finish and every client go; returns what was wrong with that."""
        everybody = [*self._clients, *([self._kv_filler] if self._kv_filler else [])]
        for client in everybody:
            client.order(order="stop")
        deadline = time.monotonic() + LEAVE_S
        return [
            problem[:2000]
            for number, client in enumerate(everybody)
            for problem in self._see_off(number, client, watch, deadline)
        ]

    def _see_off(self, number: int, client: Worker, watch: Watch, deadline: float) -> list[str]:
        """Take what a client says until it has ended."""
        while True:
            running = client.is_running  # asked before: what it said last is taken too
            for event in client.take():
                watch.take(number, event)
            if not running:
                break
            if time.monotonic() > deadline:
                return [client.report(f"{client.name} {number} did not leave")]
            time.sleep(0.01)
        code = client.stop()
        ended = [client.report(f"{client.name} {number} ended with exit code {code}")] if code else []
        return ended + [f"{client.name} {number}: {problem}" for problem in log_problems(client.stderr)]

    def close(self) -> None:
        for process in [*self._clients, *([self._kv_filler] if self._kv_filler else [])]:
            process.close()
