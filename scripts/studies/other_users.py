"""What users who speculate cost others on the same hops, in simulated time.

The scheduler is the nodes' own; a batch takes so much, and so much more for each row. A plain user sends a
token when the last one came. One who speculates sends a certain token and guesses behind it, judges results
as they come, and at the first miss sends the next round and voids what is under way. Printed are the plain
users' tokens a second, as a part of what they have beside as many plain ones, and the others', times those of
a user alone. ``scripts/wan_lab spec`` measures the same with real nodes.

scripts/study other_users --seconds 60
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product

from swarm_node.client.drafting.price import price
from swarm_node.node.engine.batching.row_time import RowTime
from swarm_node.node.engine.batching.scheduler import Certain, Scheduler

from ..lab.command_line import positive, script_parser

WARM_UP_MS = 2000.0
SMOOTH = 0.1
"""The weight of the newest batch in what a client knows of a hop's sessions."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds: ``base`` of a batch and ``row`` of each of its rows; ``way`` from one hop to the next and
    from a client to any hop, and its mean ``jitter``; ``head`` of what a client does with a result. ``hops``
    of the route."""

    base: float
    row: float
    way: float = 50.0
    jitter: float = 1.0
    head: float = 1.0
    hops: int = 3

    @property
    def trip(self) -> float:
        """Milliseconds of a token's way, where nobody else is."""
        ways = (self.hops + 1) * (self.way + self.jitter)
        return ways + self.hops * (self.base + self.row) + self.head


class Clock:
    """What happens when. ``now``: milliseconds."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._rng = random.Random(seed)
        self._there: dict[object, float] = {}  # when the last one came, by its way

    def travel(self, costs: Costs, way: object, what: Callable[[], None]) -> None:
        """``what`` happens at the end of ``way``, behind all that went there before."""
        at = self.now + costs.way + self._rng.expovariate(1 / costs.jitter)
        at = self._there[way] = max(at, self._there.get(way, 0.0))
        self.after(at - self.now, what)

    def after(self, delay: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + delay, self._count, what))

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, what = heapq.heappop(self._due)
            what()


@dataclass(slots=True, eq=False)
class Step:
    """Of a user's ``round``. ``sessions``: with how many it was computed, at each hop so far."""

    user: User
    round: int
    rows: int
    certain: Certain
    sessions: list[int] = field(default_factory=list)


class Hop:
    """One node. ``tells``: it is told which rows are guesses."""

    def __init__(self, number: int, clock: Clock, costs: Costs, tells: bool) -> None:
        self.next: Hop | None = None
        self.busy = 0.0  # milliseconds
        self._number, self._clock, self._costs, self._tells = number, clock, costs, tells
        self._row_time = RowTime()
        self._scheduler: Scheduler[User] = Scheduler(512, row_time=self._row_time)
        self._waiting: dict[User, deque[Step]] = {}
        self._computes = False

    def take(self, step: Step) -> None:
        if step.round < step.user.round_at[self._number]:
            return  # void
        user = step.user
        certain = step.certain if self._tells else Certain.ALL
        self._scheduler.add(user, user.name, step.rows, certain=certain)
        self._waiting.setdefault(user, deque()).append(step)
        if not self._computes:
            self._compute()

    def void(self, user: User, before: int) -> None:
        """Drop what waits of the rounds before that one."""
        user.round_at[self._number] = max(user.round_at[self._number], before)
        if self._waiting.get(user):
            self._scheduler.remove(user)
            self._waiting[user].clear()

    def _compute(self) -> None:
        batch = self._scheduler.next_batch(round(self._clock.now * 1e6))
        self._computes = bool(batch.slices)
        if not batch.slices:
            return
        steps = [self._waiting[part.key].popleft() for part in batch.slices]
        took = self._costs.base + self._costs.row * batch.decode_rows
        self._row_time.observe(batch.decode_rows, round(took * 1000))
        began = round(self._clock.now * 1e6)
        self._scheduler.computed(began, began + round(took * 1e6))
        self.busy += took
        self._clock.after(took, lambda: self._done(steps))

    def _done(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step.sessions.append(len(steps))
            goes_to = self.next.take if self.next is not None else step.user.receive
            self._clock.travel(self._costs, (step.user, self._number), partial(goes_to, step))
        self._compute()


@dataclass(frozen=True, slots=True)
class Speculates:
    """``draft`` guesses a round, each right with ``chance`` if those before it are, in steps of
    ``step_rows``. ``prices``: only those that bring more than they take from others. ``tells``: hops are told
    which rows are guesses."""

    draft: int
    chance: float = 0.74
    step_rows: int = 8
    prices: bool = False
    tells: bool = True


PLAIN = Speculates(0)


class User:
    """``tokens`` came so far. ``round_at``: at each hop, the lowest round that is not void."""

    def __init__(
        self, name: str, clock: Clock, costs: Costs, hops: Sequence[Hop], speculates: Speculates
    ) -> None:
        self.name, self.tokens, self.round = name, 0, 0
        self.round_at = [0] * costs.hops
        self._clock, self._costs, self._hops = clock, costs, hops
        self._speculates = speculates
        self._rng = random.Random(name)
        self._sessions = [1.0] * costs.hops
        self._left = 0  # rows of the round without a result

    def send(self) -> None:
        guesses = self._worth() if self._speculates.prices else self._speculates.draft
        self._left = guesses + 1
        size, certain = self._speculates.step_rows, Certain.SOME if guesses else Certain.ALL
        for first in range(0, self._left, size):
            step = Step(self, self.round, min(size, self._left - first), certain)
            certain = Certain.NONE
            self._clock.travel(self._costs, self, partial(self._hops[0].take, step))

    def receive(self, step: Step) -> None:
        if step.round != self.round:
            return
        if step.certain is not Certain.NONE:
            for number, seen in enumerate(step.sessions):
                self._sessions[number] += SMOOTH * (seen - self._sessions[number])
        for _ in range(step.rows):
            self.tokens += 1
            self._left -= 1
            if self._left and self._rng.random() >= self._speculates.chance:
                break
        else:
            if self._left:
                return
        self.round += 1
        if self._left:
            for hop in self._hops:
                self._clock.after(self._costs.way, partial(hop.void, self, self.round))
        self._clock.after(self._costs.head, self.send)

    def _worth(self) -> int:
        row, trip = self._costs.row, self._costs.trip
        least = max(price([(row, seen) for seen in self._sessions], trip), len(self._sessions) * row / trip)
        guesses, chance = 0, self._speculates.chance
        while guesses < self._speculates.draft and chance >= least:
            guesses, chance = guesses + 1, chance * self._speculates.chance
        return guesses


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens a second of a plain user and of one of the others, on average; ``busy``: the part of its time
    that the first hop computes."""

    plain: float
    others: float
    busy: float


def simulate(
    costs: Costs, plain: int, others: int, speculates: Speculates, *, seconds: float = 60.0, seed: int = 1
) -> Speeds:
    """``plain`` users and ``others`` on one route for so many ``seconds``."""
    clock, rng = Clock(seed), random.Random(seed)
    hops = [Hop(number, clock, costs, speculates.tells) for number in range(costs.hops)]
    for before, after in pairwise(hops):
        before.next = after
    users = [
        User(f"{seed}:{number}", clock, costs, hops, PLAIN if number < plain else speculates)
        for number in range(plain + others)
    ]
    for user in users:
        clock.after(rng.uniform(0, costs.trip), user.send)
    clock.run(WARM_UP_MS)
    had, busy = [user.tokens for user in users], hops[0].busy
    clock.run(WARM_UP_MS + seconds * 1000)
    speeds = [(user.tokens - tokens) / seconds for user, tokens in zip(users, had, strict=True)]
    return Speeds(
        sum(speeds[:plain]) / max(1, plain),
        sum(speeds[plain:]) / max(1, others),
        (hops[0].busy - busy) / seconds / 1000,
    )


COSTS = {
    "3.1 + 0.4 ms": Costs(3.1, 0.4),  # two cores of a CPU
    "3.1 + 2 ms": Costs(3.1, 2.0),  # of a larger model
    "10 + 0.05 ms": Costs(10, 0.05),  # a GPU
}
USERS = ((1, 4), (16, 16))
WAYS = [
    Speculates(draft, step_rows=rows, prices=prices, tells=tells)
    for draft, prices in ((15, False), (63, False), (63, True))
    for rows in (8, 3)
    for tells in (False, True)
]


def main() -> int:
    parser = script_parser("study other_users", __doc__)
    parser.add_argument("--seconds", type=positive, default=60.0, help="simulated (default: %(default)s)")
    seconds = parser.parse_args().seconds
    print("| hops | users | guesses | rows of a step | priced | told | plain users | others | busy |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, costs), (plain, others) in product(COSTS.items(), USERS):
        alone = simulate(costs, 1, 0, PLAIN, seconds=seconds).plain
        usual = simulate(costs, plain, others, PLAIN, seconds=seconds).plain
        for way in WAYS:
            speeds = simulate(costs, plain, others, way, seconds=seconds)
            words = ("yes" if each else "no" for each in (way.prices, way.tells))
            print(
                f"| {name} | {plain} + {others} | {way.draft} | {way.step_rows} | {' | '.join(words)} | "
                f"{speeds.plain / usual:.3f} | {speeds.others / alone:.2f} | {speeds.busy:.2f} |",
                flush=True,
            )
    return 0
