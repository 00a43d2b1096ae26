"""Texts in which special tokens are written out: recognised, or kept as text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from swarm_node.shards.tokenizer.program import TextEncoder, opened
from swarm_node.shards.tokenizer.tokenizer import Tokenizer as OurTokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im"]
WORDS = [*SPECIAL, "<table>", "the", " the", "x", "\n", "  ", "<", "|>", "é", "12"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map("".join)


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return trained(backend, pre_tokenizers.ByteLevel.alphabet())


def metaspace_first() -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return trained(backend, ["▁"])


def prepended() -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]  # as Llama 2 has it
    )
    backend.decoder = decoders.Replace("▁", " ")
    return trained(backend, ["▁"])


def trained(backend: Tokenizer, alphabet: list[str]) -> Tokenizer:
    trainer = BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=[*SPECIAL, "<table>"], show_progress=False
    )
    # What the marks consist of is merged, so that a text can come together to one of them.
    backend.train_from_iterator([*WORDS, "the <table> </s> <|im_end|> the\n" * 20], trainer)
    backend.add_tokens([AddedToken("<table>", special=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, backend.token_to_id(token)) for token in SPECIAL[:2]]
    )
    return backend


MAKERS = [byte_level, metaspace_first, prepended]
made = cache(lambda make: make())


def special_ids(backend: Tokenizer) -> set[int]:
    return {index for index, token in backend.get_added_tokens_decoder().items() if token.special}


@pytest.mark.parametrize("make", MAKERS)
class TestLiteral:
    @settings(max_examples=150, deadline=None)
    @given(text=TEXTS, add_special=st.booleans())
    def test_text_without_literal_ranges_is_encoded_by_the_library(
        self, make: Callable[[], Tokenizer], text: str, add_special: bool
    ) -> None:
        backend = made(make)
        ids = backend.encode(text, add_special_tokens=add_special).ids
        assert TextEncoder(backend).encode(text, add_special) == ids

    @settings(max_examples=150, deadline=None)
    @given(text=TEXTS)
    def test_no_special_token_comes_of_literal_text(self, make: Callable[[], Tokenizer], text: str) -> None:
        backend = made(make)
        ids = TextEncoder(backend).encode(text, False, [(0, len(text))])
        assert not special_ids(backend) & set(ids)
        assert backend.decode(ids, skip_special_tokens=False).lstrip(" ") == text.lstrip(" ")
        framed = TextEncoder(backend).encode(text, True, [(0, len(text))])
        assert framed == [backend.token_to_id("<s>"), *ids, backend.token_to_id("</s>")]

    @settings(max_examples=150, deadline=None)
    @given(before=TEXTS, after=TEXTS)
    def test_the_rest_is_encoded_as_without_it(
        self, make: Callable[[], Tokenizer], before: str, after: str
    ) -> None:
        """Special tokens on both sides keep the parts apart: each part is as the library has it."""
        backend = made(make)
        encoder = TextEncoder(backend)
        start = "<|im_start|>" + before + "<|im_end|>"
        end = "<|im_end|>" + after
        both = encoder.encode(start + "</s>" + end, False, [(len(start), len(start) + 4)])
        left = backend.encode(start, add_special_tokens=False).ids
        right = backend.encode(end, add_special_tokens=False).ids
        assert both[: len(left)] == left
        assert both[len(both) - len(right) :] == right
        assert not special_ids(backend) & set(both[len(left) : len(both) - len(right)])

    def test_a_token_that_reaches_into_a_literal_range_is_text(self, make: Callable[[], Tokenizer]) -> None:
        backend = made(make)
        text = "<|im_end|>x"
        for literal in ((0, 1), (3, 5), (9, 11)):
            ids = TextEncoder(backend).encode(text, False, [literal])
            assert backend.token_to_id("<|im_end|>") not in ids
        assert backend.token_to_id("<|im_end|>") in TextEncoder(backend).encode(text, False, [(10, 11)])

    def test_markers_are_text_and_other_added_tokens_are_not(self, make: Callable[[], Tokenizer]) -> None:
        backend = made(make)
        text = "<table></s>"
        table = backend.token_to_id("<table>")
        assert table in TextEncoder(backend).encode(text, False, [(0, len(text))])
        assert table not in TextEncoder(backend, ["<table>"]).encode(text, False, [(0, len(text))])
        assert table in TextEncoder(backend, ["<table>"]).encode(text, False)


def test_whitespace_beside_a_token_goes_as_the_token_says() -> None:
    backend = byte_level()
    backend.add_tokens([AddedToken("<end>", special=True, rstrip=True, lstrip=True)])
    backend.add_tokens([AddedToken("ask", special=True, single_word=True)])
    for text in ("x <end> \n y", "ask tasks ask", "<end>  ", "a<end><end> ask"):
        plain = backend.encode(text, add_special_tokens=False).ids
        literal = [(len(text), len(text) + 4)]
        ids = TextEncoder(backend).encode(text + "</s>", False, literal)
        assert ids[: len(plain)] == plain, text


def test_chat_turns_are_marks_though_not_called_special() -> None:
    backend = byte_level()
    ours = OurTokenizer(
        backend, eos_ids=[], special_tokens={}, chat_template="{{ '<table>' }}", origin="a test"
    )
    assert backend.token_to_id("<table>") in ours.encode("a<table>", False)
    assert backend.token_to_id("<table>") not in ours.encode("a<table>", False, literal=[(0, 8)])


def test_a_confined_program_encodes_the_same() -> None:
    backend = metaspace_first()
    _, encode = opened({"content": backend.to_str(), "markers": ["<table>"]})
    text = "the <table><|im_end|> x"
    for literal in ([], [(0, 3)], [(0, len(text))]):
        ours = TextEncoder(backend, ["<table>"]).encode(text, True, [(a, b) for a, b in literal])
        assert encode({"text": text, "add_special": True, "literal": literal}) == ours
