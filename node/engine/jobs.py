"""What the server hands to the engine and gets back: sessions' sequences, steps and their outcomes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...shards.formats.values.bounds import MAX_CONTEXT
from ...swarm.codecs.codec import Codec
from ...swarm.errors import ErrorCode
from ...swarm.fidelity.written_rows import WrittenRows
from ...swarm.protocol.branches import rows_of
from ...swarm.protocol.field_types import PAGE_TOKENS, Branches
from ...swarm.protocol.messages import Want
from ...swarm.types import Span
from .batching.scheduler import Certain
from .memory.page_allocator import Page
from .memory.page_tables import PageChange
from .memory.session_memory import Holdings
from .states import SequenceStates, StatePlan


@dataclass(eq=False, slots=True)
class TokenSequence:
    """A session as the engine sees it. Compared by identity: it is a dictionary key. Made by
    ``Engine.open_sequence``.

    ``owner``: the peer whose turn its steps take, within its address ``group``. ``length``: tokens that it
    holds once every accepted step is computed; at first, those of a known prefix or of the sequence that
    it was forked from.
    ``longest_fork``: a session for more tokens computes another way, and cannot begin as this one did.
    ``on_released`` is called in the event loop, once, when a closed sequence's memory has been given back.
    """

    owner: str
    span: Span
    max_tokens: int
    codec: Codec
    reply_codec: Codec
    holdings: Holdings
    table: np.ndarray  # (blocks, max_pages) int32 slots, -1: none yet; filled by the compute thread
    length: int
    states: SequenceStates | None = None  # where blocks keep some
    on_released: Callable[[], None] | None = None
    group: str = ""
    long_context: bool = False  # see ``BatchSlice``
    longest_fork: int = MAX_CONTEXT
    # The event loop's notes.
    closed: bool = False
    names: tuple[bytes, ...] = ()  # names of the session's whole pages, as far as the client told them
    registered: int = 0  # pages with names that the prefix cache was told of
    answered: int = 0  # tokens computed and answered
    pending: deque[int] = field(default_factory=deque)  # positions of the steps under way
    begun: bool = False
    foretold: bool = False  # ``names`` are also those of what the next step feeds, wherever it starts
    # The compute thread's notes.
    computed: int = 0  # tokens with valid keys and values
    learned: int = 0  # rows that scales were learned from
    written: WrittenRows = field(default_factory=WrittenRows)
    steps: deque[StepJob] = field(default_factory=deque)

    @property
    def settled(self) -> int:
        """Tokens that are computed, answered, and not about to be written again. Event loop only."""
        return min(self.answered, min(self.pending)) if self.pending else self.answered

    def keeps(self, tokens: int, max_tokens: int) -> bool:
        """Whether a session for ``max_tokens`` tokens that begins with the first ``tokens`` of these finds
        here what it sees of them."""
        return max_tokens <= self.longest_fork and self._holds(tokens)

    def reaches(self, position: int) -> bool:
        """Whether a step can start there, as far as the session's tokens reach: with what its blocks see."""
        return self.goes_on(position) or self._holds(position)

    def goes_on(self, position: int) -> bool:
        """Whether a step that starts there finds the states that the one before it leaves."""
        return self.states is not None and self.states.is_there and position == self.length

    def _holds(self, tokens: int) -> bool:
        """All that is seen from behind the first ``tokens`` on."""
        lowest, states = self.holdings.pages.lowest, self.states
        return tokens >= lowest and (states is None or states.reaches(tokens, lowest))

    def step_ended(self, position: int, computed: int) -> None:
        """Of the oldest step under way, which started at ``position``, ``computed`` tokens are there; 0: it
        failed."""
        self.pending.popleft()
        self.answered = position + computed if computed else min(self.answered, position)
        if not self.pending:
            self.length = self.answered
        if self.states is not None:
            self.states.held.answered()
            self.states.is_there = self.states.is_there and computed > 0

    def step_dropped(self, position: int) -> None:
        """The oldest step under way, which would have started at ``position``, will not be computed. Those
        behind it were submitted after that was known, and do not build on it."""
        is_there = self.states is not None and self.states.is_there
        self.step_ended(position, 0)
        if self.states is not None and self.pending:
            self.states.is_there = is_there

    def cut_names(self, position: int) -> None:
        """The session goes back: its names do not tell what the pages from there on will hold. A first step
        that feeds a known prefix again is what the names were given for; those that a fork has of its parent,
        or that ``end_names`` left, only tell what the pages hold."""
        pages = position // PAGE_TOKENS
        if not self.foretold:
            self.names = self.names[:pages]
        self.registered = min(self.registered, pages)

    def end_names(self) -> None:
        """What is computed from now on is not what the names given at the opening stand for."""
        self.names = self.names[: self.settled // PAGE_TOKENS]
        self.foretold = False

    def fill_tables(self) -> None:
        """Write all entries. No step must be under way."""
        self.table.fill(-1)
        for entry in self.holdings.pages.entries():
            self.table[entry.rows, entry.index] = entry.slots
        if (states := self.states) is not None:
            states.table.fill(-1)
            states.apply([*states.held.entries()])


@dataclass(slots=True)
class StepDone:
    """``rows`` hidden states in the sequence's reply codec, the first at ``position``; the last of them are
    those of ``branches``, as they were computed. Times in microseconds.

    ``queue_us`` is everything from arrival to the result that was neither this step's codec work nor the
    forward passes it took part in. ``batch``: sessions computed together.
    """

    payload: bytes | memoryview
    rows: int
    position: int
    queue_us: int
    compute_us: int
    codec_us: int
    batch: int
    branches: Branches = ()


@dataclass(frozen=True, slots=True)
class StepFailed:
    """Why a step has no result. The KV cache then holds what it held before the step's position. ``holds``:
    where the session can go on instead; None: nowhere."""

    code: ErrorCode
    message: str
    hint: str = ""
    retriable: bool = False
    holds: int | None = None


@dataclass(frozen=True, slots=True)
class StepDropped:
    """The session was closed, or the step is void, before it was computed: no answer is wanted."""


StepOutcome = StepDone | StepFailed | StepDropped


@dataclass(eq=False, slots=True)
class StepJob:
    """One STEP on its way through the engine. ``arrived_ns`` is of time.perf_counter_ns; ``deadline_ns``
    is, too; 0: none. ``payload`` has the rows of its ``tokens`` tokens, and behind them those of ``branches``
    (see ``Step``), which the engine leaves out where it has no room for them.

    ``done`` is called in the event loop, once.
    """

    sequence: TokenSequence
    step: int
    position: int
    tokens: int
    want: Want
    payload: bytes | bytearray | memoryview
    arrived_ns: int
    done: Callable[[StepJob, StepOutcome], None]
    deadline_ns: int = 0
    branches: Branches = ()
    guess: int = 0  # rows at its end, those of branches included, that may be for nothing
    # The engine's notes while the step runs, over several batches if it is a long prompt.
    changes: Sequence[PageChange] = ()  # of the sequence's table, before the step
    plan: StatePlan | None = None  # of the sequence's states, if it keeps some
    scratch: Page | None = None  # slots of its branches' pages
    refusal: StepFailed | None = None  # known when it was submitted; told in its turn
    parts: list[bytes | memoryview] = field(default_factory=list)  # encoded rows of the result so far
    rows: int = 0  # in parts
    compute_ns: int = 0
    codec_ns: int = 0
    finished: bool = False

    @property
    def certain(self) -> Certain:
        guess = max(self.guess, self.branch_rows)  # whatever the peer calls them
        if not guess:
            return Certain.ALL
        return Certain.NONE if guess >= self.tokens + self.branch_rows else Certain.SOME

    @property
    def branch_rows(self) -> int:
        """Rows of ``payload`` behind its own."""
        return rows_of(self.branches)

    @property
    def own_payload(self) -> bytes | bytearray | memoryview:
        """``payload`` without the rows of branches. One of a wrong size, which is refused, as it is."""
        size, rest = divmod(len(self.payload), self.tokens + self.branch_rows)
        return self.payload if rest or not self.branches else memoryview(self.payload)[: size * self.tokens]

    def leave_out_branches(self) -> None:
        self.guess = max(0, self.guess - self.branch_rows)
        self.payload, self.branches = self.own_payload, ()
