"""What happens in the LAN laboratory, and what is measured on the way."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from swarm_node.swarm.types import Span

from ..local_swarm import NodeProcess
from ..processes.child import Child, Launch, ProcessFailedError, launch_python
from ..processes.event_process import stop_all
from ..processes.worker import Worker
from ..prompts import MODEL
from ..wan_lab.network import WanLab
from .cpu_shares import CpuShare
from .plans import Able, best_plan, fastest_route, token_ms

NAME = MODEL.stem
RTT_S = 0.0005
PROMPT = "Explain how a sailing ship can move against the wind."
TOKENS = 64
LONG = 400
"""Tokens of the answers in which something happens."""
READY_S = 180.0
REST_S = 65.0
"""More than the minute after which a node measures itself again."""


@dataclass(frozen=True, slots=True)
class MachineKind:
    """``cores``: of a processor. ``memory``: as --memory takes it. ``rate``: of its link, bit/s each way."""

    name: str
    cores: float
    memory: str
    rate: float


FIRST = (
    MachineKind("studio", 0.7, "110MiB", 1e9),
    MachineKind("mini", 0.5, "110MiB", 1e9),
    MachineKind("laptop", 0.4, "80MiB", 300e6),
    MachineKind("old-pc", 0.3, "80MiB", 100e6),
)
LATE = MachineKind("tower", 1.0, "1GiB", 1e9)
GUEST = "guest"


class Story:
    """Use as a context manager; ``tell`` is the whole of it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stack = contextlib.ExitStack()
        self._nodes: dict[str, NodeProcess] = {}
        self._guests: list[Worker] = []
        self._peers: dict[str, str] = {}  # machine by peer id

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._homes = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-node-lan-")))
            self._lab = stack.enter_context(WanLab(rtt_s=RTT_S, multicast=True))
            self._shares = stack.enter_context(contextlib.ExitStack())  # given up when nobody is in them
            stack.callback(lambda: stop_all([*self._nodes.values(), *self._guests]))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, ProcessFailedError):
            for name, node in self._nodes.items():
                node.events += node.take()
                told = [f"{event.get('event')} {event.get('blocks', '')}".strip() for event in node.events]
                self._say(f"{name}: {', '.join(told)}; {node.stderr[-500:]}")
        self._stack.close()

    def tell(self) -> dict[str, Any]:
        for kind in (*FIRST, LATE, MachineKind(GUEST, 1.0, "", 1e9)):
            self._lab.add(kind.name)
            self._lab.set_machine(kind.name, up=kind.rate, down=kind.rate)
        models = self._home(FIRST[0].name) / "models"
        models.mkdir(parents=True)
        (models / MODEL.name).symlink_to(MODEL)
        report: dict[str, Any] = {"model": NAME, "machines": [_as_dict(kind) for kind in (*FIRST, LATE)]}

        began = time.monotonic()
        for kind in FIRST:
            self._serve(kind)
        guest = self._guest()
        answer = self._ask(guest, TOKENS)
        report["start"] = {
            "first_token_s": answer["times"][0] - began,
            "ready_s": answer["asked_at"] - began,
            "traffic": self._traffic(),
        }
        report["plan"] = self._plan()
        undisturbed = self._ask(guest, LONG)
        report["alone"] = _told(undisturbed, undisturbed)

        self._say(f"{LATE.name} joins while an answer is being made")
        before = self._lab_bytes()
        self._serve(LATE)
        joined = self._ask(guest, LONG, until=lambda: self._is_online(LATE.name))
        report["join"] = _told(joined, undisturbed) | {"bytes": self._lab_bytes() - before}
        report["late"] = {event: self._last(LATE.name, event) for event in ("measured", "planned", "online")}
        self._say("rest, in which machines measure themselves again: two real cores computed for all of them")
        time.sleep(REST_S)
        report["with_it"] = _told(self._ask(guest, LONG), undisturbed)

        self._say(f"{LATE.name}, the fastest of them, is killed in the middle of an answer")
        killed = self._ask(guest, LONG, at=(LONG // 3, self._nodes[LATE.name].kill))
        report["kill"] = _told(killed, undisturbed)
        report["traffic"] = self._traffic()
        return report

    # Processes.

    def _home(self, name: str) -> Path:
        return self._homes / name

    def _launch(self, kind: MachineKind) -> Launch:
        share = self._shares.enter_context(CpuShare(kind.name, kind.cores))

        def launch(arguments: Sequence[str], environment: dict[str, str], asked: bool) -> Child:
            with self._lab.inside(kind.name):
                child = launch_python(arguments, {**environment, **self._environment(kind.name)}, asked)
            share.join(child.pid)
            return child

        return launch

    def _environment(self, name: str) -> dict[str, str]:
        return {"SWARM_NODE_HOME": str(self._home(name)), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def _serve(self, kind: MachineKind) -> None:
        self._say(f"{kind.name}: swarm-node serve --model {NAME} --memory {kind.memory}")
        words = ["serve", "--json", "--model", NAME, "--memory", kind.memory, "--threads", "1"]
        self._nodes[kind.name] = NodeProcess(words, launch=self._launch(kind))

    def _guest(self) -> Worker:
        kind = MachineKind(GUEST, 1.0, "", 1e9)
        guest = Worker(
            "scripts.lab.lan_lab.client:answer_on_order", model_name=NAME, launch=self._launch(kind)
        )
        self._guests.append(guest)
        return guest

    def _is_online(self, name: str) -> bool:
        node = self._nodes[name]
        node.events += node.take()
        return any(event.get("event") == "online" for event in node.events)

    # Answers.

    def _ask(
        self,
        guest: Worker,
        tokens: int,
        *,
        at: tuple[int, Callable[[], None]] | None = None,
        until: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """An answer with the time of each token. ``at``: do something after a number of tokens. ``until``:
        ask again until it is true, for the answer in which it became so."""
        if not any(event.get("event") == "ready" for event in guest.events):
            guest.wait_for("ready", READY_S)
        asked_at = time.monotonic()
        guest.order(prompt=PROMPT, tokens=tokens)
        times: list[float] = []
        while len(times) < tokens:
            times.append(guest.wait_for("token", READY_S)["at"])
            if at is not None and len(times) == at[0]:
                at[1]()
        answer = guest.wait_for("answer")
        answer |= {"times": times, "asked_at": asked_at}
        answer["route"] = [[self._machine(peer_id), blocks] for peer_id, blocks in answer["route"]]
        if until is not None and not until():
            return self._ask(guest, tokens, at=at, until=until)
        return answer

    def _machine(self, peer_id: str) -> str:
        for name, node in self._nodes.items():
            node.events += node.take()
            for event in node.events:
                if event.get("peer_id"):
                    self._peers[event["peer_id"]] = name
        return self._peers.get(peer_id, peer_id)

    # What is there.

    def _plan(self) -> dict[str, Any]:
        """The spans that the machines chose, beside the best of all plans by what they measured."""
        serving, able = {}, {}
        for name in self._nodes:
            online, measured = self._last(name, "online"), self._last(name, "measured")
            if online is not None:
                serving[name] = online
            if measured is not None:
                able[name] = Able(measured["decode_ms_per_block"], measured["max_blocks"])
        n_blocks = next(iter(serving.values()))["n_blocks"]
        way_ms = RTT_S / 2 * 1000
        best_ms, best, tried = best_plan(able, n_blocks, way_ms)
        spans = sorted((Span.parse(event["blocks"]), name) for name, event in serving.items())
        ends = {name: (span.start, span.end) for span, name in spans}
        return {
            "chosen": [[name, str(span)] for span, name in spans],
            "chosen_ms": token_ms(fastest_route(ends, able, n_blocks, way_ms), able, way_ms),
            "best": best,
            "best_ms": best_ms,
            "tried": tried,
            "able": {name: [machine.decode_ms, machine.max_blocks] for name, machine in able.items()},
        }

    def _last(self, name: str, event: str) -> dict[str, Any] | None:
        node = self._nodes[name]
        node.events += node.take()
        return next((each for each in reversed(node.events) if each.get("event") == event), None)

    def _traffic(self) -> dict[str, dict[str, int]]:
        """Bytes that each machine sent and got, and how many of them came from the one with the file."""
        origin = FIRST[0].name
        found: dict[str, dict[str, int]] = {
            name: {"sent": 0, "got": 0, "from_origin": 0} for name in self._lab.machines
        }
        for (a, b), counters in self._lab.all_traffic().items():
            found[a]["sent"] += counters.bytes
            found[b]["got"] += counters.bytes
            if a == origin:
                found[b]["from_origin"] += counters.bytes
        return found

    def _lab_bytes(self) -> int:
        return sum(counters.bytes for counters in self._lab.all_traffic().values())


def _as_dict(kind: MachineKind) -> dict[str, Any]:
    return {"name": kind.name, "cores": kind.cores, "memory": kind.memory, "rate": kind.rate}


def _told(answer: dict[str, Any], undisturbed: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second, the longest pause between two, and whether they are what they would have been."""
    times = answer["times"]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    return {
        "tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
        "median_ms": statistics.median(pauses) * 1000,
        "longest_ms": max(pauses) * 1000,
        "route": answer["route"],
        "repairs": answer["repairs"],
        "same_tokens": answer["token_ids"] == undisturbed["token_ids"],
    }
