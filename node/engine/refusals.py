"""Why a step is not computed: what is known when it is submitted, and told in its turn."""

from __future__ import annotations

from ...swarm.errors import ErrorCode
from .jobs import StepFailed

NO_PAGE = StepFailed(
    ErrorCode.OVERLOADED,
    "the step rewrites pages that other sessions share, and there is no memory for copies of them",
    hint="Try again later, or open a new session.",
    retriable=True,
)
LET_GO = StepFailed(
    ErrorCode.CACHE_LOST,
    "the step goes back to where blocks with a window see tokens that the node holds no more",
    hint="Feed the tokens to a new session.",
    retriable=True,
)
HOLE = StepFailed(
    ErrorCode.BAD_STEP,
    "the step starts behind the end of what the session holds after a failed step",
    hint="Send the failed step again under a new number.",
)
NO_STATE = StepFailed(
    ErrorCode.CACHE_LOST,
    "the step goes back to where the node holds no state of its blocks any more",
    hint="Feed the tokens to a new session.",
    retriable=True,
)
GO_BACK = "Feed the session from where it can go on, or the tokens to a new one."
"""Of NO_STATE that has a place to go on."""
STATE_IN_USE = StepFailed(
    ErrorCode.OVERLOADED,
    "the step goes back to a state that other sessions share, and that a step before it waits for",
    hint="Await the answers to the steps before, or open a new session.",
    retriable=True,
)
