"""Text completions: prompts in every form, echo, legacy log probabilities."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.gateway.gateway_case import Serve, text_of
from tests.doubles.fake_swarm import BOS, expected
from tests.doubles.toy_model import ToyTokenizer

PAST_EOS = {"extra_body": {"ignore_eos": True}}
IDS = [BOS, *b"Once upon"]


@pytest.mark.parametrize("prompt", ["Once upon", IDS, ["Once upon"], [IDS]])
async def test_a_prompt_is_text_or_token_ids(serve: Serve, prompt: Any) -> None:
    served = await serve()
    answer = await served.openai.completions.create(
        model="toy", prompt=prompt, temperature=0, max_tokens=8, **PAST_EOS
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].text == text_of(expected(IDS, 8))
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(IDS), 8)


async def test_sixteen_tokens_are_the_default(serve: Serve) -> None:
    served = await serve()
    answer = await served.openai.completions.create(model="toy", prompt=IDS, temperature=0, **PAST_EOS)
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_have_n_answers_each(serve: Serve, stream: bool) -> None:
    served = await serve()
    request = {
        "model": "toy",
        "prompt": ["ab", "cde"],
        "temperature": 0,
        "max_tokens": 5,
        "n": 2,
        "echo": True,
        **PAST_EOS,
    }
    texts = dict.fromkeys(range(4), "")
    if stream:
        options = {"include_usage": True}
        async for chunk in await served.openai.completions.create(
            **request, stream=True, stream_options=options
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
            usage = chunk.usage
    else:
        answer = await served.openai.completions.create(**request)
        texts = {choice.index: choice.text for choice in answer.choices}
        usage = answer.usage
    first, second = (prompt + text_of(expected([BOS, *prompt.encode()], 5)) for prompt in ("ab", "cde"))
    assert texts == {0: first, 1: first, 2: second, 3: second}
    assert (usage.prompt_tokens, usage.completion_tokens) == (3 + 4, 20)


async def test_echo_of_token_ids_is_their_text(serve: Serve) -> None:
    served = await serve()
    answer = await served.openai.completions.create(
        model="toy", prompt=IDS, echo=True, temperature=0, max_tokens=1, **PAST_EOS
    )
    assert answer.choices[0].text.startswith("Once upon")


@pytest.mark.parametrize("stream", [False, True])
async def test_legacy_logprobs(serve: Serve, stream: bool) -> None:
    served = await serve()
    request = {"model": "toy", "prompt": IDS, "temperature": 0, "max_tokens": 6, "logprobs": 2, **PAST_EOS}
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    if stream:
        parts = [
            chunk.choices[0].logprobs
            async for chunk in await served.openai.completions.create(**request, stream=True)
        ]
    else:
        parts = [(await served.openai.completions.create(**request)).choices[0].logprobs]
    for part in parts:
        for name in found:
            found[name] += getattr(part, name) if part else []
    tokens = [
        served.model.tokenizer.token_bytes(token).decode(errors="replace") for token in expected(IDS, 6)
    ]
    assert found["tokens"] == tokens
    assert found["text_offset"] == [len("".join(tokens[:number])) for number in range(6)]
    for token, logprob, top in zip(tokens, found["token_logprobs"], found["top_logprobs"], strict=True):
        assert logprob < 0
        assert top[token] == logprob == max(top.values())  # greedy
        assert len(top) <= 2


async def test_choices_and_equal_prompts_feed_the_prompt_once(serve: Serve) -> None:
    served = await serve(speculate="off")
    fields = {"n": 3, "max_tokens": 6, "temperature": 1.0, "seed": 4, "ignore_eos": True}
    text = "a prompt of more than a page, that three choices are asked for"
    both = (await served.complete([text, text], **fields)).json()
    assert [choice["index"] for choice in both["choices"]] == list(range(6))
    texts = [choice["text"] for choice in both["choices"]]
    assert texts[:3] == texts[3:]
    prompt = len(served.model.tokenizer.encode(text))
    assert sum(step.tokens for step in served.swarm.nodes["a"].steps) == prompt + 6 * 5
    assert both["usage"]["prompt_tokens"] == 2 * prompt
    for number in range(3):
        alone = await served.complete(text, **{**fields, "n": 1, "seed": 4 + number})
        assert alone.json()["choices"][0]["text"] == texts[number]


@pytest.mark.parametrize("split", [None, False, True])
async def test_control_tokens_of_a_prompt_are_tokens_unless_it_is_all_text(
    serve: Serve, split: bool | None
) -> None:
    asked: list[Any] = []

    class Asked(ToyTokenizer):
        def encode(self, text: str, add_special: bool = True, *, literal: Any = (), **more: Any) -> list[int]:
            asked.append(list(literal))
            return super().encode(text, add_special, **more)

    served = await serve(tokenizer=Asked())
    assert (await served.complete("a</s>", max_tokens=1, split_special_tokens=split)).status_code == 200
    assert asked == [[(0, 5)] if split else []]
    refused = await served.chat(split_special_tokens=False)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "split_special_tokens")
