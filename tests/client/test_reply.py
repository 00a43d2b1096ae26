"""Thoughts apart from what is said, for a terminal: as the model's template and its tokens tell them."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_node.client.decoding.answer import TokenEvent
from swarm_node.client.parsing.pieces import Piece, Thoughts
from swarm_node.client.reply import Reply, with_controls
from tests.doubles.toy_model import ToyTokenizer

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def reply(template: str, prompt: str = "hello", special: Iterable[str] = (), **options: Any) -> Reply:
    tokenizer = ToyTokenizer()
    tokenizer.chat_template = template  # type: ignore[misc]
    tokenizer.hidden_texts = dict(enumerate(special, 300))  # type: ignore[misc]
    return Reply(tokenizer, SimpleNamespace(prompt_token_ids=tuple(prompt.encode())), **options)  # type: ignore[arg-type]


def heard(reply: Reply, *events: TokenEvent | str) -> list[Piece]:
    made = [event if isinstance(event, TokenEvent) else TokenEvent(0, event) for event in events]
    return [piece for event in made for piece in reply.push(event)] + reply.flush()


@pytest.mark.parametrize(
    ("template", "prompt", "answer", "said", "thought"),
    [
        ("<think>", "hello", "<think>hm, 2</think>\n\ntwo", "two", "hm, 2"),
        ("<think>", "hello<think>\n", "hm, 2</think>\n\ntwo", "two", "hm, 2"),
        ("<think>", "hello", "<think>hm, 2", "", "hm, 2"),
        ("<think>", "hello", "a <think> is a tag", "a <think> is a tag", ""),
        ("<think><tool_call>", "hello", f"<think>hm</think>{CALL}", CALL, "hm"),
        ("no tags", "hello", "<think>hm</think>two", "<think>hm</think>two", ""),
    ],
)
def test_what_is_thought_and_what_is_said(
    template: str, prompt: str, answer: str, said: str, thought: str
) -> None:
    for cut in (1, 7, len(answer)):
        one = reply(template, prompt)
        heard(one, *(answer[at : at + cut] for at in range(0, len(answer), cut)))
        assert one.as_dict() == {"content": said, "reasoning_content": thought}


def test_control_tokens_that_the_text_leaves_out() -> None:
    one = reply("x", special=["[THINK]", "[/THINK]"])
    opened = TokenEvent(300, "", controls=((0, "[THINK]"),))
    closed = TokenEvent(301, "hm two", controls=((2, "[/THINK]"),))
    assert [type(piece) for piece in heard(one, opened, closed)][:1] == [Thoughts]
    assert (one.reasoning, one.content) == ("hm", "two")
    assert with_controls(TokenEvent(0, "as it is")) == "as it is"


def test_channels() -> None:
    words = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"]
    one = reply("<|channel|>", special=words)

    def mark(word: str, text: str = "") -> TokenEvent:
        return TokenEvent(0, text, controls=((0, word),))

    heard(
        one,
        *(mark(words[0], "analysis"), mark(words[1], "hm"), mark(words[2]), mark(words[3], "assistant")),
        *(mark(words[0], "final"), mark(words[1], "two")),
    )
    assert (one.reasoning, one.content) == ("hm", "two")


def test_without_a_chat_all_is_text() -> None:
    one = reply("<think>", is_chat=False)
    heard(one, "<think>hm", "</think>", "", "two")
    assert one.as_dict() == {"content": "<think>hm</think>two", "reasoning_content": ""}
