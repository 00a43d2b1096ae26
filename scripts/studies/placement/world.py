"""A swarm of one model with a clock of its own: machines come, load, move, slow down, go and die.

Machines do what ``node`` does (announce early, settle, load, look again now and then, drain before a move)
and decide with ``swarm.placement.planner`` alone, from what the directory shows: an entry of a machine that
was killed stays until it expires.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from time import process_time

from swarm_node.dht.directory import REFRESH_S, TTL_S
from swarm_node.dht.memory import MemoryStore
from swarm_node.swarm.placement.planner import plan_join, plan_move, why_not_leave
from swarm_node.swarm.placement.types import ModelShape, NodeOffer, Serve, Stay, Verdict
from swarm_node.swarm.routing.best_route import missing_blocks
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

SETTLE_S = 2.0
"""Between announcing a choice and loading it, or draining and leaving."""
DRAIN_S = 20.0
"""Sessions of a node that moves or leaves end within this."""
WAITING_LOOKS = 4
"""At most this many nodes that stand by look at the directory at a time, to bound the simulation's work."""
REPLAN_S = 30.0
"""Between two looks at the directory."""


class Clock:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self, until: float, look: Callable[[], None] = lambda: None) -> None:
        """``look`` is called after every event."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heappop(self._events)
            event()
            look()
        self.now = until


@dataclass(slots=True)
class Box:
    """A machine. ``offer``: what it can do now; ``pinned``: blocks that a person chose for it."""

    offer: NodeOffer
    pinned: Span | None = None
    span: Span | None = None
    state: NodeState | None = None  # None: it stands by
    moved_at: float | None = None
    moves: int = 0
    told: NodeInfo | None = None
    counted: Span | None = None  # takes sessions for these blocks
    verdict: Verdict | None = None  # its last choice, and after how many changes of the directory
    chosen_at: int = -1
    life: int = 0  # events of an earlier life are not its own


@dataclass(slots=True)
class Tally:
    """``stood_by``: machines that were of no use, at least for a while. ``own_holes``: moves that left blocks
    without a server. ``costs``: processor seconds of each kind of work."""

    joins: int = 0
    stood_by: int = 0
    moves: int = 0
    stayed_after_all: int = 0
    own_holes: int = 0
    uncovered_s: float = 0.0
    holes: int = 0
    longest_hole_s: float = 0.0
    costs: dict[str, list[float]] = field(default_factory=dict)

    def spent(self, kind: str, began: float) -> None:
        self.costs.setdefault(kind, []).append(process_time() - began)


class World:
    """``noise``: the part by which measured speeds vary; ``remeasure_s``: seconds between measurements of a
    node that serves (None: it measures once, when it loads); ``load_s``: seconds to load a block.
    ``publish``: what an announcement goes through on its way into the directory."""

    def __init__(
        self,
        clock: Clock,
        shape: ModelShape,
        rng: random.Random,
        *,
        name: str = "model",
        noise: float = 0.0,
        remeasure_s: float | None = None,
        load_s: float = 0.5,
        replan_s: float = REPLAN_S,
        publish: Callable[[NodeInfo], NodeInfo] = lambda info: info,
    ) -> None:
        self.clock = clock
        self.shape = shape
        self.model = ModelRef(name, "0" * 64, shape.n_blocks)
        self.boxes: dict[str, Box] = {}
        self.tally = Tally()
        self.copies = [0] * shape.n_blocks
        """Machines that take new sessions, for each block."""
        # Refreshes do not change what readers see, so entries last until somebody takes them out.
        self.store = MemoryStore(lambda: clock.now, ttl=float("inf"))
        self._rng = rng
        self._noise = noise
        self._load_s = load_s
        self._replan_s = replan_s
        self._publish = publish
        self._holes = shape.n_blocks
        self._was_whole = self._ever_whole = False
        self._hole_since = 0.0
        self._looked = 0.0
        self._look_due = False
        self._changes = 0
        self._rested_at = -1  # changes up to which nobody needs to move
        self._look_again()
        if remeasure_s is not None:
            self._remeasure(remeasure_s)

    # What happens to machines.

    def join(self, offer: NodeOffer, pinned: Span | None = None) -> None:
        box = self.boxes[offer.peer_id] = Box(offer, pinned)
        if pinned is not None:
            self._load(box, pinned)
        else:
            self._choose(box)

    def kill(self, peer_id: str) -> None:
        """Its entry stays until it expires."""
        box = self.boxes.pop(peer_id)
        self._serves(box, None)
        box.life += 1
        left = TTL_S - self._rng.uniform(0, REFRESH_S)
        self.clock.after(left, lambda: self._forget(peer_id))

    def leave(self, peer_id: str) -> None:
        box = self.boxes[peer_id]
        if box.state is None:
            del self.boxes[peer_id]
            box.life += 1
            return
        self._tell(box, NodeState.DRAINING)
        self._later(box, DRAIN_S, lambda: self._gone(box))

    def set_speed(self, peer_id: str, decode_ms_per_block: float) -> None:
        box = self.boxes[peer_id]
        box.offer = replace(box.offer, decode_ms_per_block=decode_ms_per_block)
        if box.state is NodeState.ONLINE:
            self._tell(box, NodeState.ONLINE)
            self._look_soon()

    @property
    def is_whole(self) -> bool:
        return not self._holes

    def serving(self) -> list[NodeInfo]:
        """Announcements of those that take sessions, the living ones."""
        return [box.told for box in self.boxes.values() if box.told and box.state is NodeState.ONLINE]

    def begin_books(self) -> None:
        """Forget what was counted so far."""
        self._account()
        self.tally = Tally()

    def finish(self) -> Tally:
        """The books up to now."""
        self._account()
        return self.tally

    # What a machine does.

    def _choose(self, box: Box) -> None:
        verdict = self._plan_join(box)
        if not isinstance(verdict, Serve):
            if box.state is not None:
                self._withdraw(box)
            self.tally.stood_by += box.verdict is None
            box.verdict = verdict
            return
        box.span = verdict.span
        self._tell(box, NodeState.JOINING, undecided=True)
        box.verdict, box.chosen_at = verdict, self._changes
        self._later(box, SETTLE_S, lambda: self._settle(box))

    def _settle(self, box: Box) -> None:
        unchanged = self._changes == box.chosen_at
        verdict = box.verdict if unchanged and box.verdict is not None else self._plan_join(box)
        if isinstance(verdict, Serve):
            self.tally.joins += 1
            self._load(box, verdict.span)
        else:
            self._withdraw(box)
            self.tally.stood_by += 1
            box.verdict = verdict

    def _load(self, box: Box, span: Span) -> None:
        box.span = span
        self._tell(box, NodeState.JOINING)
        self._later(box, self._load_s * len(span), lambda: self._online(box))

    def _online(self, box: Box) -> None:
        box.moved_at = self.clock.now
        self._tell(box, NodeState.ONLINE)

    def _move(self, box: Box, span: Span) -> None:
        was_whole = self._seems_whole()
        self._tell(box, NodeState.DRAINING)
        self.tally.own_holes += was_whole and not self._seems_whole()
        self._later(box, SETTLE_S, lambda: self._leave_for(box, span))

    def _leave_for(self, box: Box, span: Span) -> None:
        if why_not_leave(self.store.live(), box.offer.peer_id, self.shape.n_blocks):
            self.tally.stayed_after_all += 1
            self._tell(box, NodeState.ONLINE)
            return
        box.moves += 1
        self.tally.moves += 1
        self._later(box, DRAIN_S, lambda: self._load(box, span))

    def look(self) -> None:
        """What all machines do now and then. They would all reckon the same, so the mover alone does."""
        if self._changes == self._rested_at:
            return
        snapshot = self.store.live()
        waiting = [box for box in self.boxes.values() if box.state is None and box.pinned is None]
        for box in self._rng.sample(waiting, min(len(waiting), WAITING_LOOKS)):
            self._choose(box)
            if box.state is not None:
                return  # the others see it first
        movers = self._movers(snapshot)
        if not movers:
            self._rested_at = self._changes
        for peer_id in movers:
            box = self.boxes.get(peer_id)
            if box is None:
                continue  # it was killed, and nobody knows yet
            verdict = self.plan_move(box, snapshot)
            if isinstance(verdict, Serve):
                self._move(box, verdict.span)
            return

    def _movers(self, snapshot: Sequence[NodeInfo]) -> list[str]:
        asked = next(
            (b for b in self.boxes.values() if b.state is NodeState.ONLINE and b.pinned is None), None
        )
        if asked is None:
            return []
        verdict = self.plan_move(asked, snapshot)
        if isinstance(verdict, Serve):
            return [asked.offer.peer_id]
        return [verdict.mover] if verdict.mover else []

    def plan_move(self, box: Box, snapshot: Sequence[NodeInfo]) -> Serve | Stay:
        began = process_time()
        verdict = plan_move(snapshot, box.offer, self.shape, now=self.clock.now, last_move_at=box.moved_at)
        self.tally.spent("plan_move", began)
        return verdict

    def _plan_join(self, box: Box) -> Verdict:
        snapshot = self.store.live()
        began = process_time()
        verdict = plan_join(snapshot, box.offer, self.shape)
        self.tally.spent("plan_join", began)
        return verdict

    def _seems_whole(self) -> bool:
        """Whether the directory shows a server for every block; some may be dead."""
        online = [node for node in self.store.live() if node.state is NodeState.ONLINE]
        return not missing_blocks(online, self.shape.n_blocks)

    # Books.

    def _tell(self, box: Box, state: NodeState, *, undecided: bool = False) -> None:
        if box.span is None:
            raise ValueError("a machine announces blocks before it has any")
        offer, jitter = box.offer, 1 + self._rng.uniform(-self._noise, self._noise)
        free = undecided or (state is NodeState.ONLINE and box.pinned is None)
        info = NodeInfo(
            offer.peer_id,
            (),
            self.model,
            box.span,
            state,
            decode_ms_per_block=offer.decode_ms_per_block * jitter,
            prefill_tokens_per_s=offer.prefill_tokens_per_s / len(box.span),
            free_kv_tokens=self.shape.context_tokens,
            total_kv_tokens=self.shape.context_tokens,
            links=offer.links,
            max_blocks=self.shape.max_blocks(offer.memory_bytes) if free else 0,
        )
        box.told, box.state = self._publish(info), state
        self.store.put(box.told)
        self._changes += 1
        self._serves(box, box.span if state is NodeState.ONLINE else None)

    def _withdraw(self, box: Box) -> None:
        self._serves(box, None)
        box.span = box.state = box.told = None
        self.store.remove(box.offer.peer_id)
        self._changes += 1

    def _gone(self, box: Box) -> None:
        self._withdraw(box)
        self.boxes.pop(box.offer.peer_id, None)
        box.life += 1
        self._look_soon()

    def _forget(self, peer_id: str) -> None:
        if peer_id not in self.boxes:
            self.store.remove(peer_id)
            self._changes += 1
            self._look_soon()

    def _later(self, box: Box, seconds: float, event: Callable[[], None]) -> None:
        life = box.life = box.life + 1  # whatever it had before it is off
        self.clock.after(seconds, lambda: event() if box.life == life else None)

    def _look_again(self) -> None:
        self.look()
        self.clock.after(self._replan_s, self._look_again)

    def _remeasure(self, seconds: float) -> None:
        for box in self.boxes.values():
            if box.state is NodeState.ONLINE:
                self._tell(box, NodeState.ONLINE)
        self.clock.after(seconds, lambda: self._remeasure(seconds))

    def _look_soon(self) -> None:
        """Nodes look at the directory when it has changed, once for several changes."""
        if not self._look_due and not self.is_whole:
            self._look_due = True
            self.clock.after(SETTLE_S, self._look_now)

    def _look_now(self) -> None:
        self._look_due = False
        self.look()

    def _serves(self, box: Box, span: Span | None) -> None:
        """``box`` takes sessions for ``span`` from now on, and for nothing else."""
        before, box.counted = box.counted, span
        if span != before:
            for blocks, change in ((span, 1), (before, -1)):
                if blocks is not None:
                    self._count(blocks, change)

    def _count(self, span: Span, change: int) -> None:
        self._account()
        for block in range(span.start, span.end):
            before = self.copies[block]
            self.copies[block] += change
            self._holes += (before + change == 0) - (before == 0)
        whole = not self._holes
        if self._was_whole and not whole:
            self.tally.holes += 1
            self._hole_since = self.clock.now
            self._look_soon()
        self._was_whole = whole
        self._ever_whole = self._ever_whole or whole

    def _account(self) -> None:
        """Time without a route counts from the first time that there was one."""
        if self._ever_whole and self._holes:
            self.tally.uncovered_s += self.clock.now - self._looked
            self.tally.longest_hole_s = max(self.tally.longest_hole_s, self.clock.now - self._hole_since)
        self._looked = self.clock.now
