"""Vectors of texts through three hops are those of transformers; models that are for none are refused."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from swarm_node.client import embedding
from swarm_node.dht.memory import MemoryStore
from swarm_node.shards.formats.advice.pooling import Pooling
from swarm_node.swarm.errors import PromptTooLongError, UsageError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.client.session.test_with_real_nodes import ROOMY, Swarm
from tests.doubles.fake_swarm import CONTEXT, FakeSwarm
from tests.doubles.toy_model import FACTS
from tests.shards.families.models import saved


@pytest.mark.parametrize("case", ["qwen3", "gemma3_text"])
async def test_vectors_are_those_of_transformers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved(case, tmp_path)
    vocab = model.config.vocab_size
    texts = [[5, 6, 7], [token * 7 % vocab for token in range(30)], [9]]
    monkeypatch.setattr(embedding, "CHUNK", 8)
    threads = torch.get_num_threads()
    async with AsyncExitStack() as exit_stack:
        swarm = Swarm(folder, [], exit_stack, MemoryNetwork(), MemoryStore(), {})
        client = await swarm.client()
        cuts = client._local.head.config.cuts
        spans = {"a": Span(0, cuts[1]), "b": Span(cuts[1], cuts[2]), "c": Span(cuts[2], cuts[-1])}
        await swarm.serve(kv_tokens=ROOMY, **spans)
        for pooling in Pooling:
            vectors = await client.embed(texts, pooling=pooling)
            for vector, ids in zip(vectors, texts, strict=True):
                with torch.inference_mode():
                    hidden = model.model(torch.tensor([ids])).last_hidden_state[0].numpy()
                right = hidden.mean(0) if pooling is Pooling.MEAN else hidden[-1]
                assert np.abs(vector - right / np.linalg.norm(right)).max() < 2e-4
    torch.set_num_threads(threads)


async def test_who_is_for_none_is_refused_and_who_is_too_long() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as plain:
        with pytest.raises(UsageError, match="is not a model for embeddings"):
            await plain.embed(["hello"])
        with pytest.raises(UsageError, match="pooling 'max' is not known"):
            await plain.embed(["hello"], pooling="max")
        assert (await plain.embed([], pooling="mean")).shape[0] == 0
    local = replace(swarm.local(), facts=replace(FACTS, pooling=Pooling.LAST))
    async with swarm.client(local=local) as own:
        (vector,) = await own.embed(["hello"])
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
        assert (vector == (await own.embed(["hello"], pooling="last"))[0]).all()
        assert np.abs(vector - (await own.embed(["hello"], pooling="mean"))[0]).max() > 1e-3
        with pytest.raises(PromptTooLongError):
            await own.embed(["x" * CONTEXT])
        assert swarm.open_sessions == 0
