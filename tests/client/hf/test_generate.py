"""``generate`` of the swarm's model against transformers' own, on the same weights, mode by mode."""

from __future__ import annotations

import threading
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

CLOSE = {"rtol": 1e-3, "atol": 2e-3}
PROMPT = torch.tensor([[*range(5, 30), *range(5, 20)]])
LEFT_PADDED = {
    "inputs": torch.tensor([[0, 0, 0, 31, 90, 14, 7], [9, 33, 71, 205, 4, 3, 2], [0, 0, 0, 0, 0, 0, 77]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0, 0, 0, 0, 0, 0, 1]]),
}


class NoEvens(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, torch.arange(0, scores.shape[-1], 2), -float("inf"))


class AfterASmallToken(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids[:, -1] < 60


def only_tens(batch: int, ids: Tensor) -> list[int]:
    return list(range(10, 500, 10))


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "min_length": {"min_new_tokens": 12, "eos_token_id": list(range(0, 512, 3))},
    "ends": {"eos_token_id": list(range(0, 512, 5)), "pad_token_id": 0},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "several_samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beams_that_end": {"num_beams": 3, "eos_token_id": list(range(0, 512, 4)), "pad_token_id": 0},
    "beam_sampling": {"num_beams": 3, "do_sample": True, "temperature": 1.5},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[n] for n in range(100, 300)]},
    "processor": {"logits_processor": LogitsProcessorList([NoEvens()])},
    "criterion": {"stopping_criteria": StoppingCriteriaList([AfterASmallToken()]), "pad_token_id": 0},
    "allowed_tokens": {"prefix_allowed_tokens_fn": only_tens},
    "no_cache": {"use_cache": False},
    "prefill_in_chunks": {"prefill_chunk_size": 3},
}


def both(oracle: Any, model: Any, seed: int = 3, **arguments: Any) -> tuple[Any, Any]:
    results = []
    for one in (oracle, model):
        torch.manual_seed(seed)
        results.append(one.generate(**{"max_new_tokens": 16, "do_sample": False, **arguments}))
    return results[0], results[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_are_those_of_transformers(
    oracle: Any, model: Any, swarm: Any, mode: str, padded: bool
) -> None:
    prompt = LEFT_PADDED if padded else {"inputs": PROMPT}
    theirs, ours = both(oracle, model, **prompt, **MODES[mode])
    assert ours.tolist() == theirs.tolist()
    assert swarm.is_idle()


ASSISTED: dict[str, dict[str, Any]] = {
    "prompt_lookup": {"prompt_lookup_num_tokens": 5},
    "prompt_lookup_sampling": {"prompt_lookup_num_tokens": 5, "do_sample": True, "temperature": 0.3},
    "model": {},
    "model_sampling": {"do_sample": True, "temperature": 0.5},
    "model_that_ends": {"eos_token_id": list(range(0, 512, 7)), "pad_token_id": 0},
}


@pytest.mark.parametrize("mode", ASSISTED)
def test_assisted_decoding(oracle: Any, model: Any, assistant: Any, swarm: Any, mode: str) -> None:
    arguments = dict(ASSISTED[mode])
    if "lookup" not in mode:
        arguments["assistant_model"] = assistant
    theirs, ours = both(oracle, model, inputs=PROMPT, **arguments)
    assert ours.tolist() == theirs.tolist()
    assert swarm.is_idle()


def test_drafts_stop_at_the_end_of_a_session(oracle: Any, model: Any) -> None:
    """A prompt that repeats itself, whose continuation is known for longer than there is room."""
    prompt = torch.arange(5, 25).repeat(1, 4)
    arguments = {"inputs": prompt, "prompt_lookup_num_tokens": 15, "max_new_tokens": 4, "do_sample": False}
    with model.session(max_tokens=84):
        assert model.generate(**arguments).tolist() == oracle.generate(**arguments).tolist()


def test_an_assistant_that_agrees_saves_passes(
    oracle: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle.generation_config, "assistant_confidence_threshold", 0.0)
    monkeypatch.setattr(oracle.generation_config, "num_assistant_tokens", 5)
    passes: list[int] = []
    forward = model.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    model.forward = counted
    try:
        theirs, ours = both(oracle, model, inputs=PROMPT, assistant_model=oracle)
    finally:
        del model.forward
    assert ours.tolist() == theirs.tolist()
    assert len(passes) <= 5  # 24 tokens, six and more a pass


@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 3}, {"do_sample": True}, {"prompt_lookup_num_tokens": 4}, {"padded": True}]
)
def test_scores_logits_and_hidden_states(oracle: Any, model: Any, mode: dict[str, Any]) -> None:
    mode = dict(mode)
    prompt = LEFT_PADDED if mode.pop("padded", False) else {"inputs": PROMPT}
    wanted = {"output_scores": True, "output_logits": True, "output_hidden_states": True}
    theirs, ours = both(oracle, model, **prompt, return_dict_in_generate=True, **wanted, **mode)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert len(mine) == len(other)
        for one, two in zip(mine, other, strict=True):
            torch.testing.assert_close(one, two, **CLOSE)
    real = (
        torch.ones(1, 1, dtype=torch.bool) if "attention_mask" not in prompt else prompt["attention_mask"] > 0
    )
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for number, (mine, other) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        assert len(mine) == 2  # what lies between stays on the peers
        kept = real.expand(other[0].shape[:2]) if number == 0 else torch.ones(other[0].shape[:2]) > 0
        torch.testing.assert_close(mine[0][kept], other[0][kept], **CLOSE)
        torch.testing.assert_close(mine[1][kept], other[-1][kept], **CLOSE)
    if "num_beams" in mode:
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, **CLOSE)
        assert ours.beam_indices.tolist() == theirs.beam_indices.tolist()
    ours.past_key_values.close()


def test_guidance(oracle: Any, model: Any, swarm: Any) -> None:
    """Classifier-free guidance keeps a second cache of its own, which ends with the processor."""
    theirs, ours = both(oracle, model, inputs=PROMPT, guidance_scale=1.5, negative_prompt_ids=PROMPT[:, :3])
    assert ours.tolist() == theirs.tolist()
    assert swarm.is_idle()


def test_streamers_see_every_token(oracle: Any, model: Any) -> None:
    class Collector:
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, tokens: Tensor) -> None:
            self.tokens += tokens.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    collector = Collector()
    output = model.generate(PROMPT, max_new_tokens=10, do_sample=False, streamer=collector)
    assert collector.ended
    assert collector.tokens == output[0].tolist()


def test_a_text_streamer_in_another_thread(oracle: Any, model: Any) -> None:
    tokenizer = model.tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    arguments = {"inputs": PROMPT, "max_new_tokens": 12, "do_sample": False}
    thread = threading.Thread(target=model.generate, kwargs={**arguments, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(oracle.generate(**arguments)[0, PROMPT.shape[1] :])


def test_a_chat_through_a_pipeline(oracle: Any, model: Any, swarm: Any) -> None:
    from transformers import pipeline

    tokenizer = model.tokenizer
    answers = [
        pipeline("text-generation", model=one, tokenizer=tokenizer)(
            "Hello", max_new_tokens=9, do_sample=False
        )
        for one in (oracle, model)
    ]
    assert answers[0] == answers[1]
    assert swarm.is_idle()


def test_stop_strings(oracle: Any, model: Any) -> None:
    tokenizer = model.tokenizer
    plain = oracle.generate(PROMPT, max_new_tokens=20, do_sample=False)
    stop = tokenizer.decode(plain[0, PROMPT.shape[1] + 5 : PROMPT.shape[1] + 7])
    theirs, ours = both(oracle, model, inputs=PROMPT, stop_strings=[stop], tokenizer=tokenizer)
    assert ours.tolist() == theirs.tolist()
    assert ours.shape[1] < plain.shape[1]
