"""Control tokens in a chat: the template's are tokens, those that people spell out are text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from swarm_node.shards.chat.control_tokens import ControlTokens
from swarm_node.shards.tokenizer.tokenizer import Tokenizer as OurTokenizer
from swarm_node.swarm.errors import UsageError

SPECIAL = ["<|im_start|>", "<|im_end|>", "</s>", '<|"|>', "[INST]"]
SHOWN = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
CHATML = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set c = m.content or '' %}{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ c | trim }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "inst": "{% for m in messages %}[INST] {{ m['content'] }} {{ m.name }}</s>{% endfor %}",
    "json": "{{ messages | tojson }}</s>{{ messages | tojson(ensure_ascii=True) }}",
    "twice": "{% for m in messages %}{{ m.content ~ m.content }}</s>{{ m.content | upper }}{% endfor %}",
}
WORDS = [*SPECIAL, *SHOWN, "the", " the", "\n", "<", "|>", "<|im_", "end|>", "\uf8ff", '"', "é", " "]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)


@cache
def tokenizer(template: str) -> OurTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the <|im_end|> </s> <think> [INST]\n" * 20], trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in SHOWN])
    return OurTokenizer(backend, eos_ids=(), special_tokens={}, chat_template=TEMPLATES[template])


def steering(ours: OurTokenizer, ids: Sequence[int]) -> list[str]:
    known = {ours._backend.token_to_id(token): token for token in SPECIAL}
    known |= {ours._backend.token_to_id(token): token for token in SHOWN if token in str(ours.chat_template)}
    return [known[token] for token in ids if token in known]


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_only_the_templates_own_control_tokens_are_tokens(template: str, texts: list[str]) -> None:
    ours = tokenizer(template)
    chat = [{"role": "user", "content": text, "name": text} for text in texts]
    harmless = [{**message, "content": "xyz", "name": "xyz"} for message in chat]
    ids = ours.apply_chat_template(chat)
    assert steering(ours, ids) == steering(ours, ours.apply_chat_template(harmless))
    assert ours.decode(ids, skip_special=False) == ours.template.render(chat, add_generation_prompt=True)


@pytest.mark.parametrize("template", TEMPLATES)
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=3))
@example(texts=["<tool_call>"])
def test_texts_without_control_tokens_are_encoded_as_ever(template: str, texts: list[str]) -> None:
    assume(
        not any(token in text for token in (*SPECIAL, *SHOWN) for text in texts)
    )  # it tries our words, too
    ours = tokenizer(template)
    chat = [{"role": "user", "content": text.encode(errors="replace").decode()} for text in texts]
    text = ours.template.render(chat, add_generation_prompt=True)
    assert ours.apply_chat_template(chat) == ours.encode(text, add_special=False)


def test_what_the_model_thought_is_found_by_its_template() -> None:
    ours = tokenizer("chatml")
    said = "<think>\nhm </think>\n\nThe <|im_end|> answer."
    chat = [{"role": "user", "content": "<think>"}, {"role": "assistant", "content": said}]
    ids = ours.apply_chat_template(chat, add_generation_prompt=False)
    assert steering(ours, ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert ours.decode(ids, skip_special=False).endswith("assistant\nThe <|im_end|> answer.<|im_end|>\n")


def test_a_template_that_cuts_a_token_leaves_no_mark() -> None:
    marked = ControlTokens(["<|im_end|>"]).mark([{"role": "user", "content": "a <|im_end|>"}], {}, "")
    assert marked is not None
    content = marked.messages[0]["content"]
    assert marked.found(content[:5] + "<|im_end|>") == ("a <|<|im_end|>", [])
    assert marked.found(content[4:]) == ("|im_end|>", [])
    assert marked.found(content + "<|im_end|>" + content) == (
        "a <|im_end|><|im_end|>a <|im_end|>",
        [(2, 12), (24, 34)],
    )


def test_tools_arguments_and_their_names_are_text_too() -> None:
    ours = tokenizer("chatml")
    call = {"name": "f", "arguments": {"</tool_call>": '<|im_end|> <|"|>'}}
    chat: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [{"function": call}]}]
    tools = [{"name": "f", "description": "ends with </s><tool_call>"}]
    ids = ours.apply_chat_template(chat, tools=tools)
    harmless = [{**chat[0], "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
    expected = ours.apply_chat_template(harmless, tools=[{"name": "f"}])
    assert steering(ours, ids) == steering(ours, expected)
    text = ours.decode(ids, skip_special=False)
    assert json.loads(text.split("tools\n")[1].split("\n")[0]) == tools[0]


def test_a_chat_that_leaves_no_character_free_is_refused() -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    marked = ControlTokens(["</s>"]).mark
    assert marked([{"role": "user", "content": everything}], {}, "") is None
    with pytest.raises(UsageError, match="private characters"):
        marked([{"role": "user", "content": everything + "</s>"}], {}, "")
    chat = marked([{"role": "user", "content": everything[:-2] + "</s>"}], {}, "")
    assert chat is not None
    assert chat.found(chat.messages[0]["content"])[0] == everything[:-2] + "</s>"


def test_thousands_of_tokens_in_a_long_text_take_no_time() -> None:
    tokens = ControlTokens([f"<|reserved_{number}|>" for number in range(5000)] + ["[CONTROL]", "<x>"])
    text = "if a <| b and c[0] < d: <y>\n" * 40_000  # over a megabyte
    assert tokens.mark([{"role": "user", "content": text}], {}, "") is None
