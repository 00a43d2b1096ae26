"""A draft model on this machine: its own cache goes back with the answer, and the answer is the swarm's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from scripts.lab.tiny_model import CONTEXT, VOCAB, write_tiny_model
from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.drafting.draft_model import DraftModel, DraftSequence, load_draft_model
from swarm_node.client.drafting.drafting_thread import DraftingThread
from swarm_node.client.local_model import load_local_model
from swarm_node.client.network import ClientNetwork
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import CheckpointError, NetworkError, UsageError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.client.session.test_with_real_nodes import Swarm

PROMPT = [(37 * number) % 400 + 5 for number in range(300)]
N = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same family: the same vocabulary, other weights."""
    return write_tiny_model(tmp_path_factory.mktemp("small"), seed=8, blocks=2)


def _tokenizer(folder: Path) -> Tokenizer:
    with open_checkpoint(str(folder)) as checkpoint:
        return checkpoint.tokenizer()


@pytest.fixture
def draft(folder: Path) -> Iterator[DraftModel]:
    model = load_draft_model(folder, _tokenizer(folder), VOCAB)
    yield model
    model.close()


NOTHING = np.empty((0, 0), np.float32)


async def _sequence(model: DraftModel, prompt: list[int]) -> DraftSequence:
    """Its prompt is read."""
    sequence = model.begin(prompt, 600)
    assert sequence is not None
    await asyncio.wrap_future(model.thread.submit(lambda: None))
    return sequence


async def _greedy(model: DraftModel, ids: list[int], n: int) -> list[int]:
    """Each token by a sequence of its own, fed all at once."""
    tokens: list[int] = []
    for _ in range(n):
        guess = await (await _sequence(model, [*ids, *tokens])).guess(())
        assert guess is not None
        tokens.append(guess.token)
    return tokens


async def test_guesses_do_not_depend_on_what_was_tried_before(draft: DraftModel) -> None:
    right = await _greedy(draft, PROMPT, 6)
    sequence = await _sequence(draft, PROMPT)
    for token in right:
        for wrong in (3, 4):  # continuations that are given up
            await sequence.guess([wrong])
            await sequence.guess([wrong, right[-1]])
        guess = await sequence.guess(())
        assert guess is not None
        assert guess.token == token
        assert 0 < guess.chance <= 1
        assert guess.kind[0] == "model"
        assert guess.second is not None
        assert guess.second[0] != token
        assert 0 <= guess.second[1] <= min(guess.chance, 1 - guess.chance + 1e-6)
        sequence.came([token], NOTHING)
    sequence.close()


async def test_a_continuation_with_another_beginning_is_forgotten_whole(draft: DraftModel) -> None:
    sequence = await _sequence(draft, PROMPT)
    await sequence.guess([5, 6, 7])
    sequence.came([4, 6, 7], NOTHING)  # looks the same at its end
    guess = await sequence.guess(())
    assert guess is not None
    assert [guess.token] == await _greedy(draft, [*PROMPT, 4, 6, 7], 1)


async def test_tokens_may_come_while_a_guess_is_under_way(draft: DraftModel) -> None:
    sequence = await _sequence(draft, PROMPT)
    gate = threading.Event()
    draft.thread.submit(gate.wait)
    guessing = asyncio.create_task(sequence.guess([5, 6]))
    await asyncio.sleep(0)
    sequence.came([7, 8], NOTHING)
    gate.set()
    stale, guess = await guessing, await sequence.guess(())
    assert stale is not None
    assert guess is not None
    assert [stale.token] == await _greedy(draft, [*PROMPT, 5, 6], 1)
    assert [guess.token] == await _greedy(draft, [*PROMPT, 7, 8], 1)


async def test_the_prompt_is_read_meanwhile(draft: DraftModel) -> None:
    gate = threading.Event()
    draft.thread.submit(gate.wait)
    sequence = draft.begin(PROMPT, 600)
    given_up = draft.begin(PROMPT, 600)
    assert sequence is not None
    assert given_up is not None
    assert await sequence.guess(()) is None
    given_up.close()
    gate.set()
    await asyncio.wrap_future(draft.thread.submit(lambda: None))
    assert await sequence.guess(()) is not None
    assert sequence._fed == PROMPT
    assert not given_up._fed


async def test_who_waits_when_the_model_closes_is_told(draft: DraftModel) -> None:
    sequence = await _sequence(draft, PROMPT)
    other = await _sequence(draft, PROMPT)
    gate = threading.Event()
    draft.thread.submit(gate.wait)
    waiting = asyncio.create_task(sequence.guess(()))
    cancelled = asyncio.create_task(other.guess(()))
    await asyncio.sleep(0)
    cancelled.cancel()
    closing = asyncio.create_task(asyncio.to_thread(draft.close))
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.set()
    await closing
    with pytest.raises(RuntimeError):
        await sequence.guess(())


async def test_a_prompt_that_was_never_read_is_no_fault_of_the_answer(draft: DraftModel) -> None:
    gate = threading.Event()
    draft.thread.submit(gate.wait)
    sequence = draft.begin(PROMPT, 600)
    assert sequence is not None
    sequence.close()
    gate.set()
    with pytest.raises(RuntimeError, match="closed"):
        await sequence.guess(())


async def test_what_it_cannot_hold_or_does_not_know_is_not_drafted(draft: DraftModel) -> None:
    assert draft.begin(PROMPT, CONTEXT + 1) is None
    assert draft.begin([5, VOCAB], 100) is None
    draft.vocab_size = 3
    sequence = await _sequence(draft, [1])
    assert await sequence.guess([7]) is None


def test_another_vocabulary_is_refused(folder: Path, small: Path) -> None:
    tokenizer = _tokenizer(folder)
    assert tokenizer.has_vocabulary_of(_tokenizer(small))
    tokenizer._backend.add_tokens(["one more"])  # padding at the end is no other vocabulary
    assert tokenizer.has_vocabulary_of(_tokenizer(small))
    tokenizer._backend.add_tokens([f"token {number}" for number in range(100)])
    with pytest.raises(UsageError, match="another vocabulary"):
        load_draft_model(small, tokenizer, VOCAB)


def test_a_draft_model_on_this_machine_may_be_named(
    folder: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    copytree(small, tmp_path / "models" / "named-small")
    model = load_draft_model("named-small", _tokenizer(folder), VOCAB)
    assert model.blocks.span == Span(0, 2)
    model.close()


def test_errors_say_that_it_is_the_draft_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*_: object, **__: object) -> None:
        raise NetworkError("the hub cannot be reached")

    monkeypatch.setattr("swarm_node.shards.checkpoint.hub.open_hub_model", no_hub)
    for given, kind in (
        (tmp_path, CheckpointError),
        (tmp_path / "none.gguf", CheckpointError),
        ("none", NetworkError),
        ("", UsageError),
    ):
        with pytest.raises(kind, match="the draft model cannot be used: ") as caught:
            load_draft_model(given, _tokenizer(folder), VOCAB)
        assert caught.value.hint.endswith("or off.")


@pytest.fixture
async def swarm(folder: Path) -> AsyncIterator[Swarm]:
    threads = torch.get_num_threads()
    async with AsyncExitStack() as exit_stack:
        swarm = Swarm(folder, [], exit_stack, MemoryNetwork(), MemoryStore(), {})
        await swarm.serve(kv_tokens=4096, a=Span(0, 2), b=Span(2, 4))
        yield swarm
    torch.set_num_threads(threads)


async def _client(swarm: Swarm, draft: Path | None, wire_codec: str = "none") -> AsyncSwarmModel:
    local = await asyncio.to_thread(
        load_local_model, swarm.folder, dtype="float32", quantize="none", draft=draft
    )
    network = ClientNetwork(GivenNetwork(swarm.memory.transport("client"), MemoryDirectory(swarm.store)))
    return await swarm.exit.enter_async_context(AsyncSwarmModel(local, network, wire_codec=wire_codec))


@pytest.mark.slow
@pytest.mark.parametrize("wire_codec", ["none", "int8"])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 4}])
async def test_answers_through_real_nodes_are_the_same(
    swarm: Swarm,
    folder: Path,
    small: Path,
    sampled: dict[str, Any],
    wire_codec: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.doubles.oracle import send_all

    async def run(self: DraftingThread, work: Callable[[], object]) -> object:
        return self.submit(work).result()  # as if guesses took no time: trips take hardly any here

    send_all(monkeypatch)
    monkeypatch.setattr(DraftingThread, "run", run)
    options = {"max_new_tokens": N, "ignore_eos": True, "logprobs": 2, **sampled}
    plain = await (await _client(swarm, None, wire_codec)).generate_detailed(
        PROMPT, speculate="off", **options
    )
    for path in (folder, small, None):
        model = await _client(swarm, path, wire_codec)
        answer = await model.generate_detailed(PROMPT, **options)
        assert answer.token_ids == plain.token_ids
        assert answer.logprobs == plain.logprobs  # to the last bit
        told = answer.speculated
        assert told.passes + told.accepted == N - 1
        if path == folder and not sampled:
            (known,) = (each for each in told.kinds if each.kind == "model")
            assert sum(known.right) > 0.6 * sum(known.judged) > 0  # it is the same model
        if path is not None:
            assert told.draft_s > 0
        await model.close()
