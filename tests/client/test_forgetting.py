"""What is left of a chat that is longer than the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from swarm_node.client.forgetting import forget_oldest
from swarm_node.swarm.errors import PromptTooLongError

SYSTEM = {"role": "system", "content": "ss"}


def _user(n: int) -> dict[str, Any]:
    return {"role": "user", "content": "x" * n}


def _assistant(n: int) -> dict[str, Any]:
    return {"role": "assistant", "content": "x" * n}


TALK = [SYSTEM, _user(10), _assistant(10), _assistant(3), _user(10), _assistant(10), _user(5), _assistant(2)]


def _count(messages: Sequence[dict[str, Any]]) -> int:
    return sum(len(message["content"]) for message in messages)


@pytest.mark.parametrize(
    ("context", "max_new_tokens", "kept"),
    [
        (60, 8, [2, 10, 10, 3, 10, 10, 5, 2]),
        (59, 8, [2, 10, 10, 5, 2]),  # an answer called the tool that the next one used: both go
        (36, 7, [2, 10, 10, 5, 2]),
        (36, 100, [2, 5, 2]),  # a quarter is for the answer
        (8, 1, [2, 5, 2]),  # the last question stays, and what was said to it
    ],
)
def test_the_oldest_questions_go_with_what_followed_them(
    context: int, max_new_tokens: int, kept: list[int]
) -> None:
    left = forget_oldest(TALK, _count, context=context, max_new_tokens=max_new_tokens)
    assert [len(message["content"]) for message in left] == kept


def test_few_are_counted_and_those_that_are_far_too_long_do_not_fit() -> None:
    talk = [SYSTEM, *[message for _ in range(1000) for message in (_user(1), _assistant(1))], _user(1)]
    counted = 0

    def count(messages: Sequence[dict[str, Any]]) -> int:
        nonlocal counted
        counted += 1
        if _count(messages) > 500:
            raise PromptTooLongError("too long")
        return _count(messages)

    assert _count(forget_oldest(talk, count, context=400, max_new_tokens=20)) == 379
    assert counted <= 12


@pytest.mark.parametrize("messages", [[], [SYSTEM], [_assistant(3)], [SYSTEM, _user(50)]])
def test_what_cannot_be_shortened_stays(messages: list[dict[str, Any]]) -> None:
    assert forget_oldest(messages, _count, context=10, max_new_tokens=1) == messages
