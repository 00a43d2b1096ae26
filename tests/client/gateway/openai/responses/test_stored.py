"""Responses are kept for a time and up to a size, of each caller and of all."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from swarm_node.client.gateway.openai.responses import stored as module
from swarm_node.client.gateway.openai.responses.stored import KEPT_S, StoredResponses
from swarm_node.client.http.errors import ApiError


def _put(stored: StoredResponses, caller: str, name: str, nbytes: int = 1) -> None:
    stored.put(caller, name, name, ("x" * (nbytes - len(name)),))


def _has(stored: StoredResponses, caller: str, name: str) -> bool:
    with suppress(ApiError):
        return stored.body(caller, name) == name
    return False


def test_they_are_found_by_their_caller_for_a_while() -> None:
    now = [0.0]
    stored = StoredResponses(clock=lambda: now[0])
    _put(stored, "ann", "a")
    assert _has(stored, "ann", "a")
    assert not _has(stored, "bob", "a")
    now[0] = KEPT_S - 1
    assert _has(stored, "ann", "a")
    now[0] = KEPT_S
    assert not _has(stored, "ann", "a")
    _put(stored, "bob", "b")
    assert len(stored) == 1  # what is over makes room


def test_deleted_ones_are_gone_and_others_stay() -> None:
    stored = StoredResponses()
    _put(stored, "ann", "a")
    _put(stored, "ann", "b")
    assert json.loads(stored.delete("ann", "a")) == {"id": "a", "object": "response", "deleted": True}
    assert not _has(stored, "ann", "a")
    assert _has(stored, "ann", "b")
    with pytest.raises(ApiError):
        stored.delete("bob", "b")


def test_a_caller_loses_its_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLER_BYTES", 10)
    stored = StoredResponses()
    for name in ("a", "b", "c"):
        _put(stored, "ann", name, 4)
    _put(stored, "bob", "d", 4)
    assert [_has(stored, "ann", name) for name in ("a", "b", "c")] == [False, True, True]
    assert _has(stored, "bob", "d")


def test_one_that_is_too_large_alone_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ONE_BYTES", 10)
    stored = StoredResponses()
    _put(stored, "ann", "a", 10)
    _put(stored, "ann", "b", 11)
    assert [_has(stored, "ann", name) for name in ("a", "b")] == [True, False]


def test_a_chat_is_its_turns() -> None:
    stored = StoredResponses()
    first = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    stored.put("ann", "a", "{}", (first,))
    stored.put("ann", "b", "{}", (*stored.get("ann", "a").turns, '[{"role": "user"}]'))
    stored.delete("ann", "a")
    assert [message["role"] for message in stored.get("ann", "b").messages()] == ["user", "assistant", "user"]


def test_together_who_has_most_loses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    stored = StoredResponses()
    _put(stored, "bob", "b", 3)
    for name in ("a1", "a2", "a3"):
        _put(stored, "ann", name, 3)
    assert [_has(stored, "ann", name) for name in ("a1", "a2", "a3")] == [False, True, True]
    assert _has(stored, "bob", "b")


def test_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESPONSES", 2)
    stored = StoredResponses()
    for name in ("a", "b", "c"):
        _put(stored, "ann", name)
    assert len(stored) == 2
    assert not _has(stored, "ann", "a")
