"""What the server hands to the compute thread and gets back: sessions' lanes, steps and their outcomes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..swarm.errors import ErrorCode
from ..swarm.messages import Want
from .kv_cache import SessionKv


@dataclass(eq=False, slots=True)
class Lane:
    """A session as the compute thread sees it: its KV cache and the steps that wait for it.

    ``closed`` is set by the event loop and read by the compute thread, which then drops what waits; all else
    belongs to the compute thread once the first step is submitted. Compared by identity: it is a dictionary
    key.
    """

    kv: SessionKv
    codec: str
    reply_codec: str
    closed: bool = False
    steps: deque[StepJob] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class StepDone:
    """``rows`` hidden states in the lane's reply codec, the first at ``position``. Times in microseconds.

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


@dataclass(frozen=True, slots=True)
class StepFailed:
    """Why a step has no result. The KV cache then holds what it held before the step's position."""

    code: ErrorCode
    message: str
    hint: str = ""
    retriable: bool = False


@dataclass(frozen=True, slots=True)
class StepDropped:
    """The session was closed before the step was computed: nobody wants an answer."""


StepOutcome = StepDone | StepFailed | StepDropped


@dataclass(eq=False, slots=True)
class StepJob:
    """One STEP on its way through the engine. ``arrived_ns`` is of time.perf_counter_ns; ``deadline_ns``
    too, 0: none.

    ``done`` is called in the event loop, once.
    """

    lane: Lane
    step: int
    position: int
    tokens: int
    want: Want
    payload: bytes | bytearray | memoryview
    arrived_ns: int
    done: Callable[[StepJob, StepOutcome], None]
    deadline_ns: int = 0
    # The compute thread's notes while the step runs, over several batches if it is a long prompt.
    x: Tensor | None = None  # (tokens, hidden), decoded
    outputs: list[Tensor] = field(default_factory=list)  # (rows, hidden) each
    compute_ns: int = 0
    codec_ns: int = 0
    finished: bool = False
