"""Tokenizers of GGUF files against what llama.cpp answered (``scripts/tokenizers --record``)."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.gguf.header import GGUFHeader
from swarm_node.shards.tokenizer.gguf import gguf_tokenizer
from swarm_node.shards.tokenizer.splitting import NOT_BYTE_LEVEL, SPLITTINGS
from swarm_node.shards.tokenizer.token_bytes import byte_spelling
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from tests.shards.tokenizer.hostile_texts import LONG_TEXTS, TEXTS
from tests.shards.tokenizer.tokenizer_cases import (
    ALL_TEXTS,
    CASES,
    byte_level,
    sentencepiece,
    write_vocabulary,
)

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "llama_cpp_tokens.json").read_text())
ENDS = {name: group["ends"] for group in RECORD["splits"] for name in group["names"]}
MARKS = ("e\u0301 cafe\u0301", "नमस्ते दुनिया", "বাংলা", "ខ្មែរ", "မြန်မာ", "a\u0308\u0301\u0302b", "அம்மா", "తెలుగు")
MARKS += ("❤️x",)
"""llama.cpp's engine has no classes of letter cases: it takes a mark for the end of a word."""
WIDE_SPACES = ("\u3000x", "x\u2003y", "\u2028x")
"""In the range of its expression for Chinese; llama.cpp's engine leaves all spaces out."""
CASES_OF_LETTERS = ("HelloWorld helloWorld", "XMLHttpRequest2", "ſ'ſ 'K")
SPACES_BEFORE_DIGITS = ("  42", "   1234", "  10   20   30\n  11   21   31")
"""llama.cpp cuts them off together with the digits, and then one by one."""
ORIGINAL_DIFFERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (*MARKS, "ſ'ſ 'K")),
    "granite-embed-multi-97m": ("ſ'ſ 'K",),
    "tekken": MARKS,
    "kimi-k2": (*MARKS, *CASES_OF_LETTERS),
    "youtu": CASES_OF_LETTERS,
    **dict.fromkeys(("tiny_aya", "cohere2moe"), (*SPACES_BEFORE_DIGITS, *CASES_OF_LETTERS)),
    "afmoe": SPACES_BEFORE_DIGITS,
    **dict.fromkeys(("deepseek-llm", "deepseek-coder"), WIDE_SPACES),
    "superbpe": ("१२३४", "１２３４"),
}
"""Texts that the original expression splits in another way than llama.cpp's stand-in for it."""


def tokenizer_of(path: Path) -> Tokenizer:
    return gguf_tokenizer(GGUFHeader(MappedFile(path)))


def written(tmp_path: Path, write: Callable[[gguf.GGUFWriter], None]) -> Tokenizer:
    return tokenizer_of(write_vocabulary(tmp_path / "x.gguf", write))


def digest(ids: Sequence[int]) -> str:
    return f"{zlib.crc32(json.dumps(list(ids)).encode()):08x}"


def test_every_name_was_recorded() -> None:
    assert ENDS.keys() == SPLITTINGS.keys()
    assert RECORD["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("name", SPLITTINGS)
def test_texts_are_split_as_llama_cpp_does(tmp_path: Path, name: str) -> None:
    def of_bytes(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name)
        writer.add_token_list([*byte_spelling(), "ab"])
        writer.add_token_merges(["a b"])

    split = Backend.from_str(written(tmp_path, of_bytes).to_json()).pre_tokenizer
    different = []
    for text, ends in zip(TEXTS, ENDS[name], strict=True):
        if [len(text[:end].encode()) for _, (_, end) in split.pre_tokenize_str(text)] != ends:
            different.append(text)
    assert sorted(different) == sorted(ORIGINAL_DIFFERS.get(name, ()))


LIKE_ORIGINALS = ("<0x0A>",)
"""SentencePiece takes a byte's name in a text for text; llama.cpp merges it to the byte."""


@pytest.mark.parametrize("name", CASES)
class TestSmallVocabularies:
    def test_ids_are_those_of_llama_cpp(self, tmp_path: Path, name: str) -> None:
        ours, theirs = written(tmp_path, CASES[name]), RECORD["cases"][name]
        assert sorted(ours.eos_ids) == theirs["ends"]
        begins = ours.encode("x")[0] == ours._backend.token_to_id("<s>")
        assert begins == theirs["add_bos"]
        for text, ids in zip(ALL_TEXTS, theirs["ids"], strict=True):
            if name.startswith("byte level") or text not in LIKE_ORIGINALS:
                assert digest(ours.encode(text, False)) == ids, text

    def test_text_is_text(self, tmp_path: Path, name: str) -> None:
        """Where llama.cpp has a special token none the less, it was merged from pieces."""
        ours, theirs = written(tmp_path, CASES[name]), RECORD["cases"][name]
        special = ours.special_ids()
        spelled = [ours.token_bytes(token).decode() for token in special]
        for text, plain in zip(ALL_TEXTS, theirs["plain"], strict=True):
            ids = ours.encode(text, False, literal=[(0, len(text))])
            assert not special & set(ids)
            if not any(token in text for token in (*spelled, *LIKE_ORIGINALS)):
                assert digest(ids) == plain, text

    def test_what_was_encoded_is_decoded(self, tmp_path: Path, name: str) -> None:
        ours = written(tmp_path, CASES[name])
        for text in ALL_TEXTS:
            if "<tool>" in text or "[INST]" in text:
                continue  # user-defined: SentencePiece puts a space behind, and nothing takes it away
            ids = ours.encode(text, False, literal=[(0, len(text))])
            shown = text if name.startswith("byte level") else text.replace("▁", " ")
            assert ours.decode(ids) == shown
            assert b"".join(map(ours.token_bytes, ids)).decode() in (shown, " " + shown)
            stream = ours.stream()
            assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


@pytest.mark.model
def test_the_demo_model_has_the_ids_of_llama_cpp(smollm2_path: Path) -> None:
    ours = tokenizer_of(smollm2_path)
    for text, ids in zip((*ALL_TEXTS, *LONG_TEXTS), RECORD["demo"], strict=True):
        assert digest(ours.encode(text, False)) == ids, text
    assert ours.encode("\n\n1. x") == [1116, 33, 30, 1792]
    assert ours.eos_ids == {0, 2, 4}


class TestNames:
    def test_a_missing_name_is_a_guess_and_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            written(tmp_path, byte_level(None))
        assert "does not say how it splits text" in caplog.text
        caplog.clear()
        written(tmp_path, byte_level("default"))
        assert not caplog.text

    @pytest.mark.parametrize("name", ["foo", "smollm ", "SMOLLM", "\x1b[2J", *sorted(NOT_BYTE_LEVEL)])
    def test_an_unknown_name_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.pre") as refused:
            written(tmp_path, byte_level(name))
        assert refused.value.message.isprintable()
        assert "HuggingFace" in refused.value.hint


def changed(
    base: Callable[[gguf.GGUFWriter], None], **keys: tuple[str, Any]
) -> Callable[[gguf.GGUFWriter], None]:
    def extra(writer: gguf.GGUFWriter) -> None:
        base(writer)
        for key, (kind, value) in keys.items():
            getattr(writer, f"add_{kind}")(f"tokenizer.ggml.{key}", value)

    return extra


def listed(tokens: Sequence[str], *, types: Sequence[int] = (), scores: Sequence[float] = ()) -> Any:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(tokens))
        if types:
            writer.add_token_types(list(types))
        writer.add_token_scores(list(scores) or [-float(index) for index in range(len(tokens))])

    return extra


class TestDamage:
    @pytest.mark.parametrize(
        ("write", "message"),
        [
            (changed(sentencepiece(), add_space_prefix=("string", "no")), "expected true or false"),
            (changed(sentencepiece(), add_bos_token=("uint32", 1)), "expected true or false"),
            (changed(sentencepiece(), bos_token_id=("bool", True)), "expected a whole number"),
            (changed(sentencepiece(), eos_token_id=("int32", -1)), "expected a whole number"),
            (listed(["a", "b", "a"]), "'a' twice"),
            (listed(["a", "b", "ab", "abb"], scores=[0, 0, -1000, -1000]), "the same score"),
            (listed(["a", "b"], scores=[0.0]), "2 tokens but 1 scores"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, tmp_path: Path, write: Any, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            written(tmp_path, write)

    def test_byte_level_tokens_without_merges_are_refused(self, tmp_path: Path) -> None:
        def extra(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("gpt-2")
            writer.add_token_list(byte_spelling())

        with pytest.raises(CheckpointError, match="no merges"):
            written(tmp_path, extra)

    def test_empty_tokens_and_those_of_no_text_stay_apart(self, tmp_path: Path) -> None:
        ours = written(tmp_path, listed(["a", "", "", "b"]))
        assert ours.vocab_size == 4
        assert ours.encode("ab", False)[-1] == 3


class TestEnds:
    """Tokens by their text, whatever the file calls them: see ``end_tokens``."""

    def ends(self, tmp_path: Path, *tokens: str, kind: int = 3) -> set[str]:
        every = ["<unk>", "<s>", "</s>", "▁", "a", *tokens]
        ours = written(tmp_path, listed(every, types=[2, 3, 3, 1, 1, *[kind] * len(tokens)]))
        return {every[index] for index in ours.eos_ids}

    @pytest.mark.parametrize("kind", [1, 3, 4])
    @pytest.mark.parametrize("token", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|file_sep|>"])
    def test_turns_end_with_tokens_that_no_key_names(self, tmp_path: Path, token: str, kind: int) -> None:
        assert self.ends(tmp_path, token, "<|im_start|>", kind=kind) == {"</s>", token}
        ours = tokenizer_of(tmp_path / "x.gguf")
        assert ours._backend.token_to_id(token) in ours.special_ids()

    def test_parts_of_an_answer_do_not_end_it(self, tmp_path: Path) -> None:
        harmony = ("<|return|>", "<|call|>", "<|end|>")
        assert self.ends(tmp_path, *harmony) == {"</s>", "<|return|>", "<|call|>"}
        assert self.ends(tmp_path, "<|end|>", "<|call|>") == {"</s>", "<|end|>", "<|call|>"}
        assert self.ends(tmp_path, "<|end|>", "<|calls|>", "<|flush|>") == {"</s>", "<|calls|>", "<|flush|>"}

    def test_a_tag_of_html_is_text(self, tmp_path: Path) -> None:
        def extra(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("qwen2")
            writer.add_token_list([*byte_spelling(), "ab", "</s>", "<|im_end|>"])
            writer.add_token_types([1] * 258 + [3])
            writer.add_token_merges(["a b"])
            writer.add_eos_token_id(258)

        ours = written(tmp_path, extra)
        assert ours.eos_ids == {258}
        assert ours.decode(ours.encode("<s>x</s>")) == "<s>x</s>"

    def test_a_sign_that_is_named_as_padding_stays_text(self, tmp_path: Path) -> None:
        def extra(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("gpt-2")
            writer.add_token_list([*byte_spelling(), "ab"])
            writer.add_token_types([1] * 257)
            writer.add_token_merges(["a b"])
            writer.add_pad_token_id(0x21)

        ours = written(tmp_path, extra)
        assert ours.decode(ours.encode("a!b")) == "a!b"


def test_gemma_4_has_the_ids_of_its_original(tmp_path: Path) -> None:
    """Merges of tokens that are spelled in characters, with bytes for the rest."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    original = Backend(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    original.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    original.decoder = decoders.Sequence(steps)
    trainer = BpeTrainer(vocab_size=1200, limit_alphabet=100, special_tokens=special, show_progress=False)
    original.train_from_iterator(TEXTS, trainer)
    document = json.loads(original.to_str())
    document["added_tokens"] = document["added_tokens"][:4]
    original = Backend.from_str(json.dumps(document))
    ids = document["model"]["vocab"]

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gemma4")
        writer.add_token_list(sorted(ids, key=ids.__getitem__))
        writer.add_token_scores([0.0] * len(ids))
        kinds = [3, 3, 3, 2, *[6] * 256]
        writer.add_token_types([*kinds, *[1] * (len(ids) - len(kinds))])
        writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
        writer.add_add_space_prefix(False)
        writer.add_add_bos_token(True)
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)

    tokenizer = written(tmp_path, write)
    for text in TEXTS:
        wanted = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == [2, *wanted]
        assert tokenizer.decode(wanted) == original.decode(wanted)
