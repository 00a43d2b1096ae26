"""A swarm model's tokenizer in transformers: the same results, the model's template where it can be ended."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from swarm_node.client.hf.loading import fast_tokenizer
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import ChatTemplateError, UsageError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}{% if add_generation_prompt %}>{% endif %}"
)
CHAT = [{"role": "user", "content": "Grüße"}]


def backend() -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, pre_tokenizers
    from tokenizers.models import BPE

    from swarm_node.shards.tokenizer.token_bytes import byte_spelling

    vocabulary = {letter: number for number, letter in enumerate([*byte_spelling(), "<s>"])}
    made = Backend(BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def both(template: str) -> tuple[Any, Any]:
    special = {"bos_token": "<s>", "eos_token": "!"}
    ours = Tokenizer(backend(), eos_ids=(0,), special_tokens=special, chat_template=template)
    local: Any = SimpleNamespace(tokenizer=ours, context=1000)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend(), chat_template=template, padding_side="left", pad_token="!", **special
    )
    return fast_tokenizer(local), theirs


def add(a: int) -> int:
    """Adds.

    Args:
        a: A number.
    """
    return a


@pytest.mark.parametrize(
    ("chat", "options"),
    [
        (CHAT, {"tokenize": False}),
        (CHAT, {}),
        (CHAT, {"return_dict": False, "add_generation_prompt": True, "mood": "bright"}),
        (CHAT, {"tools": [add], "tokenize": False}),
        ([CHAT, CHAT * 2], {"padding": True, "return_tensors": "np"}),
        (CHAT, {"chat_template": "{{ messages | length }}", "tokenize": False}),
    ],
)
def test_chats_are_as_transformers_makes_them(chat: Any, options: dict[str, Any]) -> None:
    ours, theirs = both(TEMPLATE)
    made, expected = (each.apply_chat_template(chat, **options) for each in (ours, theirs))
    assert str(made) == str(expected)


def test_a_hostile_template_is_ended() -> None:
    ours, _ = both("{{ 'a' * (messages|length * 3000000000) }}")
    with pytest.raises(ChatTemplateError):
        ours.apply_chat_template(CHAT)


def test_what_needs_the_template_here_is_asked_for_twice() -> None:
    ours, theirs = both("{% for m in messages %}{{ m.content }}{% endfor %}")
    options = {"continue_final_message": True, "tokenize": False}
    with pytest.raises(UsageError, match="continue_final_message"):
        ours.apply_chat_template(CHAT, **options)
    given = ours.apply_chat_template(CHAT, chat_template=ours.chat_template, **options)
    assert given == theirs.apply_chat_template(CHAT, **options)


def test_it_is_copied_and_saved_as_any_other(tmp_path: Path) -> None:
    ours, theirs = both(TEMPLATE)
    expected = theirs.apply_chat_template(CHAT, tokenize=False)
    assert copy.deepcopy(ours).apply_chat_template(CHAT, tokenize=False) == expected
    ours.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(CHAT, tokenize=False) == expected
