"""``forward`` by itself: scoring, masks, what is kept, and calls that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from swarm_node.client.hf import AutoSwarmModelForCausalLM, SwarmCache
from swarm_node.swarm.errors import SwarmError, UsageError

CLOSE = {"rtol": 1e-3, "atol": 2e-3}
IDS = torch.arange(3, 33).view(2, 15)


@torch.no_grad()
def both(oracle: Any, model: Any, **arguments: Any) -> tuple[Any, Any]:
    return oracle(**arguments), model(**arguments)


def test_logits_of_every_token(oracle: Any, model: Any, swarm: Any) -> None:
    theirs, ours = both(oracle, model, input_ids=IDS, use_cache=False)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    assert ours.past_key_values is None
    assert swarm.is_idle()


@pytest.mark.parametrize("keep", [1, 4, 100, torch.tensor([0, 3, 14]), torch.tensor([-1])])
def test_logits_to_keep(oracle: Any, model: Any, keep: Any) -> None:
    ours = model(input_ids=IDS, logits_to_keep=keep, use_cache=False).logits
    with torch.no_grad():
        every = oracle(input_ids=IDS).logits
    wanted = every[:, -keep:] if isinstance(keep, int) else every[:, keep]
    torch.testing.assert_close(ours, wanted, **CLOSE)


def test_padding_on_either_side(oracle: Any, model: Any) -> None:
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    mask[1, 9:] = 0
    theirs, ours = both(oracle, model, input_ids=IDS, attention_mask=mask, use_cache=False)
    kept = mask > 0
    torch.testing.assert_close(ours.logits[kept], theirs.logits[kept], **CLOSE)
    assert not ours.logits[~kept].any()


def test_the_loss_for_scoring(oracle: Any, model: Any) -> None:
    labels = IDS.clone()
    labels[:, :5] = -100
    theirs, ours = both(oracle, model, input_ids=IDS, labels=labels, use_cache=False)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-3)


def test_step_by_step_with_a_cache(oracle: Any, model: Any) -> None:
    with torch.no_grad():
        every = oracle(input_ids=IDS).logits
    output = model(input_ids=IDS[:, :9])
    torch.testing.assert_close(output.logits, every[:, :9], **CLOSE)
    with output.past_key_values as cache:
        for column in range(9, 15):
            logits = model(input_ids=IDS[:, column : column + 1], past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], every[:, column], **CLOSE)
        assert cache.get_seq_length() == 15


def test_a_tuple_where_one_is_asked_for(model: Any) -> None:
    output = model(input_ids=IDS, use_cache=False, return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].shape == (2, 15, 512)


def test_a_long_prefill_of_which_little_is_wanted(oracle: Any, model: Any) -> None:
    ids = torch.arange(300)[None] % 500
    with torch.no_grad():
        every = oracle(input_ids=ids).logits
    ours = model(input_ids=ids, logits_to_keep=5, use_cache=False).logits
    torch.testing.assert_close(ours, every[:, -5:], **CLOSE)


def test_a_session_grows_beyond_what_was_reserved(oracle: Any, model: Any, swarm: Any) -> None:
    """Nobody said how long it is going to be."""
    ids = torch.arange(600)[None] % 500
    with torch.no_grad():
        every = oracle(input_ids=ids).logits
    with SwarmCache(model) as cache:
        for start in range(0, 600, 200):
            logits = model(input_ids=ids[:, start : start + 200], past_key_values=cache).logits
            torch.testing.assert_close(logits, every[:, start : start + 200], **CLOSE)
        assert swarm.sessions(1)
    assert swarm.is_idle()


POSITIONS = torch.arange(15)[None]
WRONG = {
    "no ids": ({"input_ids": None}, "input_ids"),
    "one dimension": ({"input_ids": IDS[0]}, "rows, tokens"),
    "outside the vocabulary": ({"input_ids": torch.tensor([[600]])}, "0 to 511"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 1, 64)}, "inputs_embeds"),
    "attentions": ({"output_attentions": True}, "Attention weights"),
    "a word unknown": ({"no_such_argument": 1}, "no_such_argument"),
    "mask of another shape": ({"attention_mask": torch.ones(2, 7)}, r"\(2, 15\)"),
    "a mask for each token": ({"attention_mask": torch.ones(2, 1, 15, 15)}, r"\(2, 15\)"),
    "packed sequences": (
        {"position_ids": torch.cat([POSITIONS[:, :7], POSITIONS[:, :8]], 1)},
        "position_ids",
    ),
    "another cache": ({"past_key_values": DynamicCache()}, "DynamicCache"),
    "columns that are not there": ({"logits_to_keep": torch.tensor([15])}, "15"),
}


@pytest.mark.parametrize("case", WRONG)
def test_calls_that_cannot_be(model: Any, swarm: Any, case: str) -> None:
    change, words = WRONG[case]
    with pytest.raises(UsageError) as caught:
        model(**{"input_ids": IDS, **change})
    assert caught.value.hint or caught.value.message
    import re

    assert re.search(words, f"{caught.value} {caught.value.hint}")
    assert swarm.is_idle()


def test_nothing_can_be_trained_moved_or_saved(model: Any, tmp_path: Any) -> None:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    with pytest.raises(UsageError, match="gradients"):
        loss.backward()
    for wrong in (
        model.train,
        lambda: model.to("meta"),
        lambda: model.to(torch.float16),
        lambda: model.save_pretrained(tmp_path),
        lambda: model.resize_token_embeddings(10),
        lambda: model.generate_batch([[1]]),
        AutoSwarmModelForCausalLM,
    ):
        with pytest.raises(SwarmError):
            wrong()
    assert model.to("cpu", torch.float32) is model
    assert not model.training
    assert list(model.parameters()) == []
