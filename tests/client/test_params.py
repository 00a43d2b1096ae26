from __future__ import annotations

from typing import Any

import pytest
from fake_swarm import BOS, VOCAB, ToyTokenizer

from swarm_node.client.params import GenerationParams, fit_context, prompt_ids
from swarm_node.swarm.errors import UsageError


class Plain(ToyTokenizer):
    has_chat_template = False


def _ids(prompt: Any, *, raw: bool = False, tokenizer: ToyTokenizer | None = None) -> list[int]:
    return prompt_ids(tokenizer or ToyTokenizer(), prompt, raw=raw, vocab_size=VOCAB)


def test_a_text_is_a_chat_message_unless_raw_or_without_template() -> None:
    assert bytes(_ids("hi")[1:]) == b"<user>hi<assistant>"
    assert _ids("hi", raw=True) == [BOS, *b"hi"]
    assert _ids("hi", tokenizer=Plain()) == [BOS, *b"hi"]


def test_messages_go_through_the_template_and_ids_as_they_are() -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert bytes(_ids(chat)[1:]) == b"<system>s<user>u<assistant>"
    assert _ids([3, 1, 2]) == [3, 1, 2]


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_an_empty_prompt(prompt: object) -> None:
    with pytest.raises(UsageError, match="empty"):
        _ids(prompt)


@pytest.mark.parametrize("prompt", [[VOCAB], [-1], [1.5], ["a"], [{"role": "user"}, 3], [True]])
def test_what_is_no_prompt(prompt: object) -> None:
    with pytest.raises(UsageError, match="neither"):
        _ids(prompt)


def test_raw_messages_are_refused() -> None:
    with pytest.raises(UsageError, match="raw"):
        _ids([{"role": "user", "content": "u"}], raw=True)


def test_a_prompt_must_leave_room_for_an_answer() -> None:
    assert fit_context(10, 5, 16) == 5
    assert fit_context(10, 500, 16) == 6
    with pytest.raises(UsageError, match=r"17 tokens.*16") as caught:
        fit_context(17, 1, 16)
    assert "2 tokens" in caught.value.hint


def test_options_are_checked_by_name() -> None:
    params = GenerationParams.of({"max_new_tokens": 3, "stop": "x", "top_k": 4, "raw": True})
    assert (params.max_new_tokens, params.stop, params.sampling.top_k) == (3, ("x",), 4)
    assert GenerationParams.of({"stop": ["a", "b"]}).stop == ("a", "b")
    with pytest.raises(UsageError, match="max_tokens"):
        GenerationParams.of({"max_tokens": 3})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(UsageError, match="max_new_tokens 0"):
        GenerationParams.of({"max_new_tokens": 0})
