"""The nodes of the chaos test: what is done to each, and how it comes back."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil

from ..local_swarm import LocalSwarm, NodeProcess
from ..soak.verdict import log_problems
from ..wan_lab.network import WanLab
from .places import Places
from .schedule import SKEW_S, Planned
from .watch import Fault

DAEMON_RESTART_S = 3.0
"""A node is left alone for this many seconds after the end of its p2pd. Then it must be whole again."""
DAEMON_REST_S = 20.0
"""Between two ends of one node's p2pd: a node gives up when its daemons keep dying young."""
UNREACHABLE_S = 5.0
"""After a failed dial libp2p waits this many seconds before it dials the peer again. Until then a node that
was cut off is no replica for anybody."""
LEAVE_S = 20.0
"""What a node that was told to leave may take."""
ONLINE_S = 60.0
"""What a node may take to be online again."""


@dataclass(slots=True)
class Slot:
    """A replica of a span. ``state``: "up"; "faulty", until ``until``; "leaving"; or "starting". ``place``:
    the machine that it runs on."""

    span: str
    role: str
    place: str
    process: NodeProcess
    peer: str = ""
    maddrs: list[str] = field(default_factory=list)
    state: str = "starting"
    until: float = 0.0
    fault: Fault | None = None
    cure: Callable[[], None] = lambda: None
    daemon_ended: float = -DAEMON_REST_S
    reachable_at: float = 0.0

    def daemon(self) -> psutil.Process:
        """Its p2pd. Raises psutil.Error."""
        children = psutil.Process(self.process.pid).children()
        if not children:
            raise psutil.NoSuchProcess(self.process.pid)
        return children[0]


class ChaosNodes:
    """Does one planned fault after the other to the nodes of ``swarm``, and brings them back.

    ``problems``: what nodes did that no fault explains.
    """

    def __init__(
        self, swarm: LocalSwarm, spans: Sequence[str], places: Places, fill: Callable[[Slot, float], None]
    ) -> None:
        """Starts a node for each of ``spans``, and waits until all are online."""
        for number, span in enumerate(spans):
            place = f"node {number}"
            with places.inside(place):
                swarm.start_node(span, host=places.host(place), wait=False)
        self.slots = [
            Slot(span, "", f"node {number}", swarm.nodes[number]) for number, span in enumerate(spans)
        ]
        for slot in self.slots:
            swarm.wait_online(slot.process)
        self._places = places
        in_order = sorted(set(spans), key=lambda span: int(span.split("-")[0]))
        for slot in self.slots:
            slot.role = {in_order[0]: "first", in_order[-1]: "last"}.get(slot.span, "middle")
            self._online(slot, slot.process.events[-1])
        self.problems: list[str] = []
        self.restarts = 0
        self._swarm = swarm
        self._fill = fill

    def could_have(self, planned: Planned, replicas: int) -> list[Slot]:
        """The nodes that may have this fault now: ``replicas`` of their span are left without them."""
        now = time.monotonic()
        return [
            slot
            for slot in self.slots
            if slot.state == "up"
            and planned.kind.role in ("any", slot.role)
            and sum(
                other.state == "up" and (other is slot or other.reachable_at <= now)
                for other in self.slots
                if other.span == slot.span
            )
            > replicas
            and not (planned.kind.name == "p2pd of a node" and now - slot.daemon_ended < DAEMON_REST_S)
        ]

    def begin(self, planned: Planned, slot: Slot) -> Fault:
        """Do it. The fault is over when the node is whole again."""
        now = time.monotonic()
        name = planned.kind.name
        fault = slot.fault = Fault(name, now, slot.peer)
        slot.state, slot.until, slot.cure = "faulty", now + planned.hold_s, lambda: self._recovered(slot)
        node = slot.process
        if name == "kill -9":
            node.kill()
            slot.cure = lambda: self._restart(slot)
        elif name == "SIGTERM":
            node.ask_to_stop()
            slot.state, slot.until = "leaving", now + LEAVE_S
        elif name == "frozen":
            self._pause(slot, psutil.Process(node.pid))
        elif name == "partition" and self._places.lab is not None:
            self._places.lab.partition(slot.place)
            slot.cure = partial(self._heal, slot, self._places.lab)
        elif name == "partition":
            self._pause(slot, slot.daemon())
        elif name == "p2pd of a node":
            slot.daemon_ended, slot.until = now, now + DAEMON_RESTART_S
            slot.daemon().kill()
        elif name.startswith("hostile"):
            node.tell(name.split(",")[0])

            def replace() -> None:
                # Under another name: nobody will want to hear of this one for minutes.
                node.kill()
                slot.fault = None  # for whoever asks for the old name, it has no end
                self._restart(slot, same_identity=False)

            slot.cure = replace
        elif name == "clock skew":
            low, high = SKEW_S
            skew = (low + (high - low) * planned.amount) * (1 if planned.pick < 0.5 else -1)
            node.tell(f"skew {skew:.2f}")

            def set_right() -> None:
                node.tell("skew 0")
                self._recovered(slot)

            slot.cure = set_right
        elif name == "full cache":
            self._fill(slot, planned.hold_s)
        else:
            raise ValueError(f"nobody knows how to make {name!r}")
        return fault

    def poll(self) -> None:
        """Take what nodes say; end faults whose time is over; restart nodes that have left."""
        now = time.monotonic()
        for slot in self.slots:
            for event in slot.process.take():
                if event["event"] == "online":
                    self._online(slot, event)
                elif event["event"] == "error":
                    self.problems.append(f"node {slot.peer[-8:]}: {event['message']}")
            running = slot.process.is_running
            if slot.state == "leaving" and not running:
                if code := slot.process.process.returncode:
                    self.problems.append(f"a node that was told to leave ended with exit code {code}")
                self._restart(slot)
            elif slot.state == "leaving" and now > slot.until:
                self.problems.append(f"a node did not leave within {LEAVE_S:.0f} s")
                slot.process.kill()
                self._restart(slot)
            elif slot.state == "faulty" and now >= slot.until:
                slot.cure()
            elif slot.state == "starting" and not running:
                self.problems.append(slot.process.report("ended before it was online")[:2000])
                self._restart(slot)
            elif slot.state == "starting" and now > slot.until:
                self.problems.append(slot.process.report(f"not online within {ONLINE_S:.0f} s")[:2000])
                slot.until = now + ONLINE_S
            elif slot.state == "up" and not running:
                what = slot.fault.kind if slot.fault is not None else "nothing"
                code = slot.process.process.returncode
                self.problems.append(f"a node ended by itself (exit code {code}) after {what}")
                self._restart(slot)

    @property
    def all_up(self) -> bool:
        return all(slot.state == "up" for slot in self.slots)

    def take_logs(self, node: NodeProcess) -> None:
        self.problems += log_problems(node.stderr)

    def _pause(self, slot: Slot, process: psutil.Process) -> None:
        process.suspend()

        def go_on() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):  # a node may have replaced its hung daemon
                process.resume()
            self._recovered(slot)

        slot.cure = go_on

    def _heal(self, slot: Slot, lab: WanLab) -> None:
        lab.heal(slot.place)
        self._recovered(slot)

    def _restart(self, slot: Slot, *, same_identity: bool = True) -> None:
        self.take_logs(slot.process)
        with self._places.inside(slot.place):
            slot.process = self._swarm.restart_node(slot.process, same_identity=same_identity)
        slot.state, slot.until = "starting", time.monotonic() + ONLINE_S
        self.restarts += 1

    def _online(self, slot: Slot, event: dict[str, Any]) -> None:
        slot.peer, slot.maddrs = event["peer_id"], event["maddrs"]
        self._recovered(slot)

    def _recovered(self, slot: Slot) -> None:
        now = time.monotonic()
        slot.state = "up"
        if slot.fault is not None and slot.fault.ended is None:
            slot.fault.ended = now
            if slot.fault.kind == "partition":
                slot.reachable_at = now + UNREACHABLE_S


def end_daemon_of(pid: int) -> None:
    """SIGKILL the p2pd of a process."""
    for child in psutil.Process(pid).children():
        child.send_signal(signal.SIGKILL)
