"""Long calls into C let other threads go on: else one client's text stops everybody's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.studies.interpreter_lock import measured
from swarm_node.client.guided.guide import Guide
from swarm_node.client.guided.token_guide import Guides
from swarm_node.client.http.body import MAX_NAMES, parse_json
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

KEPT, LET_GO = 0.7, 0.5
"""Part of a call's time for which another thread stands still: with the lock kept, and at most without."""


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    with open_checkpoint(str(smollm2_path)) as checkpoint:
        return checkpoint.tokenizer()


def stopped(call: Callable[[], object]) -> float:
    """For which part of ``call`` another thread could not run. The best of some rounds: other processes only
    add to it."""
    rounds = [measured(call) for _ in range(5)]
    return min(stop / took for took, stop in rounds)


def test_what_keeps_the_lock_is_seen(tokenizer: Tokenizer) -> None:
    text = "ab " * 100_000
    assert stopped(lambda: tokenizer._backend.encode(text)) > KEPT


def test_encoding_and_decoding_let_go(tokenizer: Tokenizer) -> None:
    text = "some words " * 60_000
    assert stopped(lambda: tokenizer.encode(text)) < LET_GO
    ids = tokenizer.encode(text)
    assert stopped(lambda: tokenizer.decode(ids)) < LET_GO


def test_compiling_a_guide_lets_go(tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    guides: Any = Guides(tokenizer, tokenizer.vocab_size)
    guides._tables()
    guide = Guide("regex", "|".join(f"word{number}[a-z]*" for number in range(3000)))
    assert stopped(lambda: guides._compile(guide)) < LET_GO


def test_looking_at_a_body_lets_go() -> None:
    """What is left to json.loads is bounded."""
    text = ("[" + ",".join(['"[[[[[[["'] * 200_000) + "]").encode()
    assert text.count(b"[") > MAX_NAMES
    assert stopped(lambda: parse_json(text)) < LET_GO
