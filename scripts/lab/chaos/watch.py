"""What clients say, held against what was done to the nodes: whose token came late, and because of what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

GIVE_UP_S = 15.0
"""A fault that a stream has not noticed by then did it no harm."""
GRACE_S = 10.0
"""A node may be held responsible so long after its fault: what was known of it is of before."""
MOVED_S = 66.0
"""For so long a peer may be looked for where it was: it comes back at another port, and its last announcement
from before lives so long."""
UNNOTICED = frozenset({"clock skew", "full cache"})
"""Kinds of fault that running answers need not notice: nobody waits until they have got over one."""
HARMLESS = frozenset({"BusyError", "PeerLateError"})
"""What a node is kept away from for, and which is no blame."""
HARMLESS_CODES = frozenset({"session_expired", "draining"})

SAME_S = 0.1
"""The same complaint about the same peer within this time is one complaint."""

StreamKey = tuple[int, int]
"""Number of the client, number of its stream."""


@dataclass(slots=True)
class Fault:
    """``peer`` "" for a fault of a client's own; ``client`` then says which. ``ended`` None: still there."""

    kind: str
    began: float
    peer: str = ""
    client: int | None = None
    ended: float | None = None

    def explains(self, peer: str, at: float, cause: str = "") -> bool:
        """Whether a failure of this peer at this moment can come of it."""
        after = MOVED_S if cause == "PeerUnreachableError" else GRACE_S
        return self.peer == peer and self.began <= at and (self.ended is None or at <= self.ended + after)


@dataclass(slots=True)
class StreamState:
    """A stream as it is now. ``hit``: the fault that it has not got over yet."""

    running: bool = False
    at: float = 0.0
    tokens: int = 0
    repairs: int = 0
    peers: tuple[str, ...] = ()
    hit: Fault | None = None
    causes: list[str] = field(default_factory=list)
    """Of each repair so far, the kind of fault."""


@dataclass(slots=True)
class Watch:
    """Feed it every fault and every event of every client."""

    faults: list[Fault] = field(default_factory=list)
    streams: dict[StreamKey, StreamState] = field(default_factory=dict)
    generations: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stalls: list[tuple[str, float]] = field(default_factory=list)
    unharmed: Counter[str] = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)
    repairs: list[dict[str, Any]] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    bans: int = 0
    false_bans: list[str] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    _blame: dict[tuple[int, str], tuple[float, dict[str, Any]]] = field(default_factory=dict)
    on_note: Callable[[dict[str, Any]], None] = lambda note: None

    def in_use(self) -> dict[str, list[StreamKey]]:
        """The peers of routes that give tokens now."""
        used: dict[str, list[StreamKey]] = {}
        for key, stream in self.streams.items():
            if stream.running and stream.tokens:
                for peer in stream.peers:
                    used.setdefault(peer, []).append(key)
        return used

    def recovering(self) -> bool:
        """Whether some stream has not got over a fault yet."""
        return any(stream.hit is not None for stream in self.streams.values())

    def begin(self, fault: Fault) -> Fault:
        """Note a fault at the moment that it is made."""
        self.faults.append(fault)
        self.note(fault.began, fault.kind, peer=fault.peer, client=fault.client)
        if fault.kind in UNNOTICED:
            return fault
        for key, stream in self.streams.items():
            concerned = fault.peer in stream.peers if fault.peer else key[0] == fault.client
            if stream.running and stream.tokens and stream.hit is None and concerned:
                stream.hit = fault
        return fault

    def note(self, at: float, what: str, **details: Any) -> None:
        """For people who read how it came: ``timeline``."""
        self.timeline.append({"at": round(at, 3), "what": what, **details})
        self.on_note(self.timeline[-1])

    def take(self, client: int, event: dict[str, Any]) -> None:
        match event["event"]:
            case "began":
                self.streams[client, event["stream"]] = StreamState(running=True, at=event["at"])
            case "token":
                self._token(self.streams[client, event["stream"]], event)
            case "ended":
                self._over(client, event)
                self._ended(client, event)
            case "failed":
                self._over(client, event)
                self.failures.append(f"client {client}: {event['error']}")
                self.note(event["at"], "failed", client=client, error=event["error"][:300])
            case "blamed":
                self._blamed(client, event)

    def _token(self, stream: StreamState, event: dict[str, Any]) -> None:
        hit, at = stream.hit, event["at"]
        repaired = event["repairs"] - stream.repairs
        if repaired:
            before = frozenset(stream.peers)
            kind = hit.kind if hit is not None and at >= hit.began else self._latest(before, at)
            stream.causes += [kind] * repaired
        stream.at, stream.tokens, stream.repairs = at, event["n"], event["repairs"]
        stream.peers = tuple(event["peers"])
        if hit is None or at < hit.began:
            return
        if repaired:
            self.stalls.append((hit.kind, at - hit.began))
            self.note(at, "repaired", fault=hit.kind, seconds=round(at - hit.began, 3))
            stream.hit = None
        elif at > hit.began + GIVE_UP_S or (hit.peer and hit.peer not in stream.peers):
            self._unharmed(stream)

    def _latest(self, peers: frozenset[str], at: float) -> str:
        """The last fault of one of these peers that there was before ``at``."""
        for fault in reversed(self.faults):
            if any(fault.explains(peer, at) for peer in peers):
                return fault.kind
        return "none"

    def _over(self, client: int, event: dict[str, Any]) -> None:
        stream = self.streams[client, event["stream"]]
        self._unharmed(stream)
        stream.running = False

    def _unharmed(self, stream: StreamState) -> None:
        if stream.hit is not None:
            self.unharmed[stream.hit.kind] += 1
            stream.hit = None

    def _ended(self, client: int, event: dict[str, Any]) -> None:
        self.generations += 1
        self.tokens += len(event["token_ids"])
        self.drafted += event["drafted"]
        self.accepted += event["accepted"]
        self.wrong.update(difference(event["expected"], event["token_ids"]))
        if not event["text_is_whole"]:
            self.failures.append(f"client {client}: the streamed pieces are not the answer's text")
        self.gaps += event["gaps"]
        causes = self.streams[client, event["stream"]].causes
        for number, repair in enumerate(event["repairs"]):
            fault = self._latest(frozenset(repair.get("lost") or ()), repair["at"])
            if fault == "none" and number < len(causes):
                fault = causes[number]
            self.repairs.append({**repair, "fault": fault})

    def _blamed(self, client: int, event: dict[str, Any]) -> None:
        told = {name: event[name] for name in ("peer", "cause", "code", "message", "banned")}
        before = self._blame.get((client, event["peer"]))
        self._blame[client, event["peer"]] = (event["at"], told)
        if before is not None and before[1] == told and event["at"] - before[0] < SAME_S:
            return  # sessions that share a link fail together: one failure
        self.note(event["at"], "blamed", client=client, **told)
        self.retries[event["code"] or event["cause"]] += 1
        if event["cause"] in HARMLESS or event["code"] in HARMLESS_CODES or not event["banned"]:
            return
        self.bans += 1
        lied = event["cause"] == "RemoteProtocolError"
        if not any(
            fault.explains(event["peer"], event["at"], event["cause"])
            and (fault.kind.startswith("hostile") or not lied)
            for fault in self.faults
        ):
            self.false_bans.append(
                f"client {client} keeps away from peer {event['peer'][-8:]}: "
                f"{event['cause']}: {event['message']}"
            )


def difference(expected: list[int], given: list[int]) -> Counter[str]:
    """How many tokens of an answer are ``lost``, ``doubled`` (there once too often) or ``differing``."""
    found: Counter[str] = Counter()
    for kind, a, b, c, d in SequenceMatcher(None, expected, given, autojunk=False).get_opcodes():
        same = min(b - a, d - c) if kind == "replace" else 0
        if kind != "equal":
            found["differing"] += same
            found["lost"] += b - a - same
            found["doubled"] += d - c - same
    return +found
