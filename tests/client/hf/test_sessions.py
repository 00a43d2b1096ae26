"""Caches that outlive a call: continuing, editing, copying, and what the peers hold meanwhile."""

from __future__ import annotations

import copy
import gc
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor

from swarm_node.client.hf import SwarmCache
from swarm_node.swarm.errors import UsageError

PROMPT = torch.tensor([list(range(5, 45))])
GREEDY = {"do_sample": False, "max_new_tokens": 10}


def prefilled(model: Any, call: Any) -> tuple[Tensor, int]:
    """What ``call`` returns, and how many columns it fed in all."""
    fed: list[int] = []
    forward = model.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        fed.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    model.forward = counted
    try:
        return call(), sum(fed)
    finally:
        del model.forward


def test_a_chat_feeds_only_what_is_new(oracle: Any, model: Any, swarm: Any) -> None:
    with model.session(max_tokens=200) as session:
        first, fed = prefilled(model, lambda: model.generate(PROMPT, **GREEDY))
        assert (fed, first.tolist()) == (40 + 9, oracle.generate(PROMPT, **GREEDY).tolist())
        turn = torch.cat([first, torch.tensor([[7, 8, 9]])], dim=1)
        second, fed = prefilled(model, lambda: model.generate(turn, **GREEDY))
        assert (fed, second.tolist()) == (4 + 9, oracle.generate(turn, **GREEDY).tolist())
        assert session.lengths == [53 + 9]
        assert swarm.sessions(1)
    assert swarm.is_idle()


def test_a_prompt_edited_in_the_middle(oracle: Any, model: Any) -> None:
    with model.session(max_tokens=200):
        model.generate(PROMPT, **GREEDY)
        edited = PROMPT.clone()
        edited[0, 30] = 99
        ours, fed = prefilled(model, lambda: model.generate(edited, **GREEDY))
    assert (fed, ours.tolist()) == (10 + 9, oracle.generate(edited, **GREEDY).tolist())


def test_the_same_prompt_again_and_another(oracle: Any, model: Any) -> None:
    other = torch.tensor([list(range(100, 120))])
    with model.session(max_tokens=200):
        for prompt, fed in ((PROMPT, 40), (PROMPT, 1), (other, 20)):
            ours, columns = prefilled(model, lambda prompt=prompt: model.generate(prompt, **GREEDY))
            assert (columns, ours.tolist()) == (fed + 9, oracle.generate(prompt, **GREEDY).tolist())


def test_a_batch_whose_padding_moves(oracle: Any, model: Any) -> None:
    def padded(*rows: list[int]) -> dict[str, Tensor]:
        width = max(map(len, rows))
        ids = [[0] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return {"inputs": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    long, short = list(range(5, 45)), [9, 8, 7]
    with model.session(max_tokens=200):
        first = model.generate(**padded(long, short), **GREEDY)
        answers = first[:, 40:].tolist()
        rows = [long + answers[0] + [33, 34], short + answers[1] + list(range(70, 77))]
        ours, fed = prefilled(model, lambda: model.generate(**padded(*rows), **GREEDY))
    assert fed == 8 + 9  # the longer of both new turns, and a token each of the answers
    assert ours.tolist() == oracle.generate(**padded(*rows), **GREEDY).tolist()


def test_beams_then_one_row_then_samples(oracle: Any, model: Any, swarm: Any) -> None:
    """Rows are chosen and forked from what is there."""
    with model.session(max_tokens=200) as session:
        beams = model.generate(PROMPT, num_beams=3, **GREEDY)
        assert session.batch_size == 3
        turn = torch.cat([beams, torch.tensor([[7, 8]])], dim=1)
        ours, fed = prefilled(model, lambda: model.generate(turn, **GREEDY))
        assert ours.tolist() == oracle.generate(turn, **GREEDY).tolist()
        assert fed < 25
        assert session.batch_size == 1
        samples = []
        for one in (oracle, model):
            torch.manual_seed(1)
            samples.append(one.generate(turn, max_new_tokens=5, do_sample=True, num_return_sequences=3))
        assert samples[0].tolist() == samples[1].tolist()
        assert session.batch_size == 3
        assert swarm.sessions(3)
    assert swarm.is_idle()


def test_transformers_own_way_to_continue(oracle: Any, model: Any) -> None:
    """A cache passed and returned, and input ids that are only the new ones under a mask for all."""
    cache = SwarmCache(model)
    first = model.generate(PROMPT, past_key_values=cache, return_dict_in_generate=True, **GREEDY)
    assert first.past_key_values is cache
    turn = torch.cat([first.sequences, torch.tensor([[7, 8]])], dim=1)
    fed = cache.get_seq_length()
    ours = model.generate(
        turn[:, fed:], attention_mask=torch.ones_like(turn), past_key_values=cache, **GREEDY
    )
    theirs = oracle.generate(turn, **GREEDY)
    assert ours.tolist() == theirs[:, fed:].tolist()
    cache.close()


def test_a_prefix_computed_once_and_copied(oracle: Any, model: Any, swarm: Any) -> None:
    with SwarmCache(model) as prefix:
        model(input_ids=PROMPT, past_key_values=prefix, logits_to_keep=1)
        for tail in ([50, 51], [60], [70, 71, 72]):
            ids = torch.cat([PROMPT, torch.tensor([tail])], dim=1)
            with copy.deepcopy(prefix) as own:
                ours, fed = prefilled(
                    model, lambda ids=ids, own=own: model.generate(ids, past_key_values=own, **GREEDY)
                )
            assert (fed, ours.tolist()) == (len(tail) + 9, oracle.generate(ids, **GREEDY).tolist())
        assert prefix.lengths == [40]
    assert swarm.is_idle()


def test_the_peers_memory_is_free_when_a_cache_is_dropped(model: Any, swarm: Any) -> None:
    output = model.generate(PROMPT, return_dict_in_generate=True, **GREEDY)
    assert swarm.sessions(1)
    del output
    gc.collect()
    assert swarm.is_idle()


def test_beams_share_pages(model: Any, swarm: Any) -> None:
    """Eight beams over a prompt of two pages and a bit take two pages and eight bits, on each hop."""
    prompt = torch.arange(5, 5 + 70)[None]
    output = model.generate(
        prompt, num_beams=8, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    used = {node.statistics().engine.used_slots for node in swarm.nodes.values()}
    assert used <= {(2 + count) * 2 for count in range(1, 9)}  # two blocks a hop
    output.past_key_values.close()


def test_limits_are_said_before_anything_is_sent(model: Any, swarm: Any) -> None:
    with model.session(max_tokens=45):
        with pytest.raises(UsageError, match="45") as caught:
            model.generate(PROMPT, **GREEDY)
        assert "5 fewer" in caught.value.hint
        assert model.generate(PROMPT, max_new_tokens=5, do_sample=False).shape == (1, 45)
    with pytest.raises(UsageError, match="context of 2048"):
        model.generate(PROMPT, max_new_tokens=2040)
    with pytest.raises(UsageError, match="padding"):
        model.generate(PROMPT, attention_mask=torch.tensor([[1] * 39 + [0]]))
    with pytest.raises(UsageError, match="static"):
        model.generate(PROMPT, cache_implementation="static")
    with pytest.raises(UsageError, match="3000"), model.session(max_tokens=3000):
        pass
    assert swarm.is_idle()


def test_continuing_with_only_what_is_new_has_limits_too(model: Any, swarm: Any) -> None:
    with SwarmCache(model, max_tokens=60) as cache:
        first = model.generate(PROMPT, past_key_values=cache, **GREEDY)
        mask = torch.ones(1, cache.get_seq_length() + 1, dtype=torch.long)
        arguments = {"attention_mask": mask, "past_key_values": cache, **GREEDY}
        assert model.generate(first[:, -1:], **arguments).shape == (1, 11)
        cache.crop(-10)
        with pytest.raises(UsageError, match="session's limit of 60"):
            model.generate(first[:, -1:], **{**arguments, "max_new_tokens": 11})
        with pytest.raises(UsageError, match="use_cache"):
            model.generate(PROMPT, past_key_values=cache, use_cache=False)
        with pytest.raises(UsageError, match="another model"):
            swarm.client(name="other").generate(PROMPT, past_key_values=cache)
        with pytest.raises(UsageError, match="3 rows"):
            model(input_ids=torch.ones(3, 1, dtype=torch.long), past_key_values=cache)


def test_rows_are_chosen_repeated_and_reset(oracle: Any, model: Any, swarm: Any) -> None:
    rows = torch.arange(5, 45).view(4, 10)
    with SwarmCache(model) as cache:
        model(input_ids=rows, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([True, False, True, False]))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 3, 0, 1]))
        cache.crop(-2)
        assert (cache.batch_size, cache.get_seq_length(), cache.lengths) == (4, 8, [8] * 4)
        ids = rows[[2, 2, 0, 0], :8]
        more = torch.tensor([[7, 8], [9, 10], [11, 12], [7, 8]])
        ours = model(input_ids=more, past_key_values=cache).logits
        with torch.no_grad():
            theirs = oracle(torch.cat([ids, more], dim=1)).logits[:, -2:]
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
        assert swarm.sessions(4)
        cache.crop(4)
        assert cache.get_seq_length() == 4
        cache.reset()
        assert swarm.is_idle()
        model(input_ids=rows, past_key_values=cache)
        assert cache.get_seq_length() == 10
