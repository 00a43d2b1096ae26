"""Tokenizers that come as weapons: expressions that never end, texts that multiply, tokens of a gigabyte."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, WordPiece

from swarm_node.shards.formats.values.fields import Fields
from swarm_node.shards.tokenizer import hf as hf_module
from swarm_node.shards.tokenizer import tokenizer as tokenizer_module
from swarm_node.shards.tokenizer.check import takes_linear_time, token_reach
from swarm_node.shards.tokenizer.gguf import merges_of_scores
from swarm_node.shards.tokenizer.hf import _add_tokens, _check_texts, _read
from swarm_node.shards.tokenizer.splitting import LINEAR, SPLITTINGS
from swarm_node.shards.tokenizer.token_bytes import byte_spelling
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.confined.process import Bounds
from swarm_node.swarm.errors import CheckpointError, PromptTooLongError, UnsupportedModelError, UsageError

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
NESTED = "(a+)+$"  # the library's engine gives up after ten million steps, and panics
QUADRATIC = r"a*a*a*a*a*b|."  # never so many at one place, and at each of many


def content(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json of single bytes, some parts of it replaced."""
    backend = Backend(BPE(vocab={letter: index for index, letter in enumerate(byte_spelling())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {**json.loads(backend.to_str()), **parts}


def made(document: Mapping[str, Any]) -> Tokenizer:
    backend = Backend.from_str(json.dumps(document))
    return Tokenizer(backend, eos_ids=(), special_tokens={}, chat_template=None, origin="evil")


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replace(pattern: Mapping[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": new}


def several(kind: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


CONFINED = {"afmoe", "cohere2moe", "exaone-moe", "superbpe", "tiny_aya"}
"""Names whose expressions look ahead over all that follows."""


@pytest.mark.parametrize("name", SPLITTINGS)
def test_expressions_of_models_in_use_run_here(name: str) -> None:
    steps = map(split, SPLITTINGS[name].expressions)
    tokenizer = made(content(pre_tokenizer=several("pretokenizers", *steps)))
    assert tokenizer.is_confined == (name in CONFINED)


@pytest.mark.parametrize("pattern", sorted(LINEAR))
def test_they_take_linear_time_on_runs_of_anything(pattern: str) -> None:
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    for letter in "a", "A", " ", "\n", "!", "1", "中", "'", " \n", "\u0301":
        text = letter * (15_000 // len(letter))
        for end in "", "\0":
            cut.pre_tokenize_str(text + end)  # a quadratic one takes many seconds; a panic fails


def test_other_expressions_run_where_they_can_be_ended_with_the_same_result() -> None:
    document = content(pre_tokenizer=several("pretokenizers", split(r"[a-z]+|[^a-z]+"), split("x")))
    tokenizer = made(document)
    assert tokenizer.is_confined
    here = Backend.from_str(json.dumps(document))
    for text in "", "abcx 12 ax", "Grüße 😀":
        assert tokenizer.encode(text) == here.encode(text).ids
    with pytest.raises(UsageError, match="Unicode"):
        tokenizer.encode("\ud800")
    tokenizer.close()


def test_a_text_that_the_file_has_no_token_for_is_an_error() -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "\x1b[2J"}
    with pytest.raises(CheckpointError, match="tokenizer of evil failed on this text: Unk token `\u241b"):
        made(content(model=model, pre_tokenizer=None)).encode("b")


def test_an_expression_that_panics_or_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = Bounds(memory_bytes=2 * 2**30, cpu_s=0, wall_s=10)
    monkeypatch.setattr(tokenizer_module, "ENCODE_BOUNDS", bounds)
    for pattern, evil in ((NESTED, "a" * 34 + "!"), (QUADRATIC, "a" * 3000)):
        tokenizer = made(content(pre_tokenizer=split(pattern)))
        with pytest.raises(CheckpointError, match="tokenizer of evil failed"):
            tokenizer.encode(evil)
        assert tokenizer.encode("b")
        tokenizer.close()


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": replace({"String": "a"}, "a" * 1_000_000)},
        {"normalizer": several("normalizers", *[replace({"String": "a"}, "aa")] * 30)},
        {"normalizer": replace({"Regex": ""}, "b" * 100)},
        {"normalizer": {"type": "Prepend", "prepend": "x" * 10_000}},
        {"decoder": replace({"String": "a"}, "b" * 10_000_000)},
        {"decoder": several("decoders", *[replace({"String": "a"}, "aa")] * 30)},
        {"decoder": replace({"Regex": NESTED}, "b")},
        {"normalizer": several("normalizers", *[{"type": "NFC"}] * 1000)},
        {"normalizer": several("normalizers", *[{"type": "ByteLevel"}] * 8)},
        {"pre_tokenizer": several("pretokenizers", *[BYTE_LEVEL] * 32)},
        {"post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a", "type_id": 0}}] * 10_000,
            "pair": [],
            "special_tokens": {"a": {"id": "a", "ids": [1], "tokens": ["a"]}},
        }},
    ],
)  # fmt: skip
def test_what_multiplies_texts_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match="tokenizer of evil"):
        made(content(**parts))


def test_words_are_looked_up_to_a_length() -> None:
    backend = Backend(WordPiece({"[UNK]": 0}, unk_token="[UNK]", max_input_chars_per_word=10**9))
    with pytest.raises(CheckpointError, match="words of over"):
        takes_linear_time(backend, "evil")


@pytest.mark.parametrize(
    "text", ['"' + "a" * 2**20 + '"', "", "{", '{"version":"1.0","model":{"type":"BPE"}}']
)
def test_a_file_with_a_huge_token_or_of_no_known_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(CheckpointError):
        _read(path)


def test_many_tables_of_unicode_are_looked_over_in_linear_time() -> None:
    table = b'"precompiled_charsmap": "' + b"A" * 8300 + b'",\n'
    began = process_time()
    _check_texts(table * 3000, Path("evil"))
    assert process_time() - began < 2  # 0.1 s; what takes the square takes 3


@pytest.mark.slow
def test_a_file_whose_tokens_take_for_ever_to_normalize_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_module, "LOAD_BOUNDS", Bounds(memory_bytes=2 * 2**30, cpu_s=0, wall_s=10))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    added = [{"id": 256 + number, "content": "a" * 3000 + str(number), **flags} for number in range(1000)]
    path = tmp_path / "tokenizer.json"
    parts = {"normalizer": replace({"Regex": "a*a*a*b|."}, "b")}
    path.write_text(json.dumps(content(**parts, added_tokens=added)))
    with pytest.raises(CheckpointError, match="cannot be loaded: it took more than"):
        _read(path)
    path.write_text(json.dumps(content(**parts, added_tokens=[{**added[0], "content": "a" * 30}])))
    monkeypatch.undo()
    backend = _read(path)
    assert backend.get_vocab_size() == 257
    settings = {"added_tokens_decoder": {"257": {"content": "a" * 3000, "normalized": True}}}
    with pytest.raises(UnsupportedModelError, match="normalized with expressions"):
        _add_tokens(backend, Fields(settings, "tokenizer_config.json"), {})


def test_merges_are_not_looked_for_in_huge_tokens() -> None:
    with pytest.raises(CheckpointError, match="long tokens"):
        merges_of_scores({"a" * 20_000: 0}, {"a" * 20_000: 0.0})


def test_a_prompt_far_over_the_context_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = made(content())
    seen: list[int] = []
    encode = tokenizer._encode

    def counted(text: str, add_special: bool, literal: Sequence[tuple[int, int]]) -> list[int]:
        seen.append(len(text))
        return encode(text, add_special, literal)

    monkeypatch.setattr(tokenizer, "_encode", counted)
    with pytest.raises(PromptTooLongError, match="context holds 1000"):
        tokenizer.encode("ab " * 600_000, most=1000)
    assert sum(seen) <= tokenizer_module.CHECKED_CHARACTERS
    assert len(tokenizer.encode("ab" * 400, most=1000)) == 800


def test_a_panic_while_decoding_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    class Panicking:
        def decode(self, *_: Any, **__: Any) -> str:
            raise panic("never")

    tokenizer = made(content())
    monkeypatch.setattr(tokenizer, "_backend", Panicking())
    with pytest.raises(CheckpointError, match="tokens of its own"):
        tokenizer.decode([1])


def test_other_threads_run_while_a_text_is_encoded() -> None:
    tokenizer, counted, over = made(content()), [0], threading.Event()

    def count() -> None:
        while not over.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    tokenizer.encode("ab " * 60_000)
    during = counted[0] - before
    over.set()
    thread.join()
    assert during > 1000


def merged(**parts: Any) -> dict[str, Any]:
    """Single bytes but one, as in vocabularies that are in use, and runs of up to eight spaces or dashes."""
    letters = byte_spelling()
    vocabulary = {letter: index for index, letter in enumerate(letters[:4] + letters[5:])}
    merges = []
    for letter in (letters[32], "-"):
        for length in (1, 2, 4):
            merges.append((letter * length, letter * length))
            vocabulary[letter * 2 * length] = len(vocabulary)
    backend = Backend(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {**json.loads(backend.to_str()), **parts}


PIECES = st.sampled_from([" " * 9, "-" * 17, "é", "😀", "a", "e\u0301", "<|x|>", "\x04" * 30])


@given(st.lists(PIECES, max_size=20).map("".join))
def test_a_text_has_no_fewer_tokens_than_is_said(text: str) -> None:
    for normalizer in (None, {"type": "NFC"}):
        backend = Backend.from_str(json.dumps(merged(normalizer=normalizer)))
        backend.add_special_tokens([AddedToken("<|x|>")])
        reach = token_reach(backend)
        assert reach is not None
        assert (reach.characters, reach.ignored) == (8 if normalizer is None else 32, "\x04")
        assert reach.fewest(text) <= len(backend.encode(text).ids)


REMOVING = {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "aaaa"}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": REMOVING},
        {"pre_tokenizer": None},  # it leaves out what its vocabulary of bytes has not
    ],
)
def test_what_may_swallow_text_bounds_nothing(parts: Mapping[str, Any]) -> None:
    assert token_reach(Backend.from_str(json.dumps(merged(**parts)))) is None


def test_a_token_that_takes_the_space_beside_it_bounds_nothing() -> None:
    backend = Backend.from_str(json.dumps(merged()))
    backend.add_special_tokens([AddedToken("<|x|>", rstrip=True)])
    assert token_reach(backend) is None
    assert token_reach(Backend(WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"))) is None


def test_a_text_that_can_never_fit_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend.from_str(json.dumps(merged()))
    tokenizer = Tokenizer(backend, eos_ids=(), special_tokens={}, chat_template=None)
    assert len(tokenizer.encode(" " * 8000, most=1000)) == 1000
    monkeypatch.setattr(tokenizer, "_encode", None)
    with pytest.raises(PromptTooLongError, match="1001 tokens or more"):
        tokenizer.encode(" " * 8001, most=1000)
