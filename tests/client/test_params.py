from __future__ import annotations

from typing import Any

import pytest

from swarm_node.client.guided.guide import Guide
from swarm_node.client.params import GenerationParams, fit_context, prompt_ids
from swarm_node.swarm.errors import UsageError
from tests.doubles.fake_swarm import BOS, VOCAB, ToyTokenizer


class Plain(ToyTokenizer):
    has_chat_template = False


def _ids(prompt: Any, *, raw: Any = False, tokenizer: ToyTokenizer | None = None) -> list[int]:
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


def test_a_raw_text_may_be_nothing_but_text() -> None:
    asked: list[Any] = []

    class Asked(ToyTokenizer):
        def encode(self, text: str, add_special: bool = True, *, literal: Any = (), **more: Any) -> list[int]:
            asked.append(list(literal))
            return super().encode(text, add_special, **more)

    for raw in (True, "text"):
        assert _ids("a</s>", raw=raw, tokenizer=Asked()) == [BOS, *b"a</s>"]
    assert asked == [[], [(0, 5)]]
    with pytest.raises(UsageError, match="raw"):
        _ids([{"role": "user", "content": "u"}], raw="text")


def test_raw_messages_are_refused() -> None:
    with pytest.raises(UsageError, match="raw"):
        _ids([{"role": "user", "content": "u"}], raw=True)


def test_a_prompt_must_leave_room_for_an_answer() -> None:
    assert fit_context(10, 5, 16) == 5
    assert fit_context(10, 500, 16) == 6
    with pytest.raises(UsageError, match=r"17 tokens.*16") as caught:
        fit_context(17, 1, 16)
    assert "2 tokens" in caught.value.hint


def _params(**options: Any) -> GenerationParams:
    return GenerationParams.of(options, vocab_size=VOCAB)  # type: ignore[arg-type]


def test_options_are_checked_by_name() -> None:
    params = _params(max_new_tokens=3, stop="x", top_k=4, min_p=0.1, logprobs=2, raw=True)
    assert (params.max_new_tokens, params.stop, params.sampling.top_k) == (3, ("x",), 4)
    assert (params.sampling.min_p, params.sampling.logprobs, params.speculate) == (0.1, 2, "auto")
    assert _params(stop=["a", "b"]).stop == ("a", "b")
    assert _params(stop=None).stop == _params(stop="").stop == ()
    with pytest.raises(UsageError, match="max_tokens"):
        _params(max_tokens=3)


def test_every_option_without_a_value_is_its_default() -> None:
    assert _params() == GenerationParams()
    guide = Guide("json_object")
    assert _params(guide=guide, speculate="off") == GenerationParams(guide=guide, speculate="off")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("max_new_tokens", 2.0),
        ("stop", 3),
        ("ignore_eos", 1),
        ("raw", "yes"),
        ("guide", {"type": "object"}),
        ("guide", "json_object"),
        ("speculate", "always"),
        ("speculate", True),
        ("on_wait", "soon"),
        ("logit_bias", {VOCAB: 1.0}),
        ("temperature", [1.0]),
    ],
)
def test_what_an_option_cannot_be(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        _params(**{name: value})
    assert caught.value.hint


def test_stop_strings_are_texts() -> None:
    with pytest.raises(UsageError, match="stop string"):
        _params(stop=["a", 3])
