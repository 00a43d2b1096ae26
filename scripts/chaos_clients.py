"""The clients of the chaos test, as their parent sees them: processes that stream, and one that hoards."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from chaos_nodes import Slot, end_daemon_of
from chaos_places import Places
from chaos_watch import Fault, Watch
from event_process import EventProcess, Launch
from soak_verdict import log_problems

FOLDER = Path(__file__).parent
LEAVE_S = 90.0
"""For the answers that are still made when the clients are told to stop."""
REST_S = 15.0
"""Between two ends of one client's p2pd: a process gives up when its daemons keep dying young."""


class ChaosClients:
    """One process with so many streams for each of ``streams``. Use as a context manager."""

    def __init__(
        self, *, streams: Sequence[int], launch: Launch, places: Places, hoarder: bool, **options: Any
    ) -> None:
        """``options`` are those of ``chaos_client.ChaosClient``. The processes start at once."""
        self._clients: list[EventProcess] = []
        self._hoarder: EventProcess | None = None
        self._daemon_ended = [-REST_S] * len(streams)
        try:
            for number, own_streams in enumerate(streams):
                own = {**options, "streams": own_streams, "prefix_cache": number % 2 == 0}
                with places.inside(f"client {number}"):
                    self._clients.append(_start("chaos_client.py", own, launch))
            if hoarder:
                peers = {"initial_peers": options["initial_peers"]}
                with places.inside("hoarder"):
                    self._hoarder = _start("chaos_hoarder.py", peers, launch)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        for process in [*self._clients, *([self._hoarder] if self._hoarder else [])]:
            process.wait_for("ready")

    def undisturbed(self) -> list[list[int]]:
        """Every prompt's answer, while nobody else asks and nothing fails."""
        _order(self._clients[0], order="answer")
        answers: list[list[int]] = self._clients[0].wait_for("answered")["token_ids"]
        return answers

    def go(self, expected: list[list[int]]) -> None:
        for client in self._clients:
            _order(client, order="go", expected=expected)

    def poll(self, watch: Watch) -> None:
        """Pass on what clients said. Raises ProcessFailedError for one that has ended."""
        for number, client in enumerate(self._clients):
            for event in client.take():
                watch.take(number, event)
            if not client.is_running:
                client.wait_for("anything", timeout=5)  # raises, with what it said last

        if self._hoarder is not None:
            for event in self._hoarder.take():
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

    def hoard(self, slot: Slot, seconds: float) -> None:
        """Fill a node's KV cache for a while."""
        if self._hoarder is not None:
            _order(self._hoarder, peer=slot.peer, maddrs=slot.maddrs, blocks=slot.span, seconds=seconds)

    def leave(self, watch: Watch) -> list[str]:
        """Let every stream finish and every client go; returns what was wrong with that."""
        everybody = [*self._clients, *([self._hoarder] if self._hoarder else [])]
        for client in everybody:
            _order(client, order="stop")
        deadline = time.monotonic() + LEAVE_S
        return [
            problem[:2000]
            for number, client in enumerate(everybody)
            for problem in self._see_off(number, client, watch, deadline)
        ]

    def _see_off(self, number: int, client: EventProcess, watch: Watch, deadline: float) -> list[str]:
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
        for process in [*self._clients, *([self._hoarder] if self._hoarder else [])]:
            if process.is_running:
                process.kill()
            process.stop()


def _start(script: str, options: dict[str, Any], launch: Launch) -> EventProcess:
    return EventProcess(script, [str(FOLDER / script), json.dumps(options)], asked=True, launch=launch)


def _order(process: EventProcess, **order: Any) -> None:
    process.tell(json.dumps(order))
