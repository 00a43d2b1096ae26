"""Token ids against transformers' tokenizers built from the same files, and streaming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from scripts.lab.transformers_oracle import load_transformers_tokenizer
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.gguf.header import GGUFHeader
from swarm_node.shards.tokenizer.gguf import gguf_tokenizer
from swarm_node.shards.tokenizer.tokenizer import DECODED_AT_ONCE, Tokenizer
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from tests.shards.tokenizer.tokenizer_cases import sentencepiece, write_vocabulary

HFLlama = Callable[..., Path]
GGUFLlama = Callable[..., Path]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two spaces   three    four ",
    "tabs\tand\r\nline\n\n\nends \n",
    "1234567890 3.14 10,000 2024-01-02",
    "  42 and\n\n1. list\n\n2. list",
    "it's don't we'll I'D THEY'RE",
    "naïve café Straße Ωμέγα Привет мир שלום مرحبا",
    "中文字符 日本語 한국어 ไทย",
    "😀👍🏽👨‍👩‍👧‍👦🇫🇷 and \U0001f9ff",
    "e\u0301 \u200b\u200d\ufeff\u00a0x",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|>",
    "<|im_start|><|im_start|>x<s></s><unk><pad>",
    "def f(x):\n    return x**2  # comment\n\tif True:\n",
    "a" * 300,
    "\x00\x01\x7f\x80",
    "https://example.com/a?b=c&d=%20#frag",
    "▁underline ▁▁ Ġ ĊĊ",
]


@pytest.fixture(scope="session")
def smollm2_pair(smollm2_path: Path) -> tuple[Tokenizer, Any]:
    """Ours and transformers' from the same GGUF file."""
    pytest.importorskip("transformers")
    theirs = load_transformers_tokenizer(smollm2_path)
    with open_checkpoint(str(smollm2_path)) as model:
        return model.tokenizer(), theirs


@pytest.mark.model
class TestSmolLM2:
    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_and_text_equal_transformers(self, smollm2_pair: tuple[Tokenizer, Any], text: str) -> None:
        ours, theirs = smollm2_pair
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(text=st.text(max_size=60))
    def test_any_text(self, smollm2_pair: tuple[Tokenizer, Any], text: str) -> None:
        ours, theirs = smollm2_pair
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert streamed(ours, ids) == ours.decode(ids)

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(ids=st.lists(st.integers(0, 49151), max_size=12))
    def test_any_ids_stream_to_the_same_text(
        self, smollm2_pair: tuple[Tokenizer, Any], ids: list[int]
    ) -> None:
        assert streamed(smollm2_pair[0], ids) == smollm2_pair[0].decode(ids)

    def test_default_system_prompt(self, smollm2_pair: tuple[Tokenizer, Any]) -> None:
        ours, theirs = smollm2_pair
        messages = [{"role": "user", "content": "Hi <|im_end|> there"}]
        text = ours.template.render(messages, add_generation_prompt=True)
        assert text.startswith(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        )
        assert text.endswith("<|im_start|>assistant\n")
        assert text == theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        plain = [{"role": "user", "content": "Hi there"}]
        ids = theirs.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
        assert ours.apply_chat_template(plain) == ids
        end = ours._backend.token_to_id("<|im_end|>")
        spelled = ours.apply_chat_template(messages)  # as text, and merged with what stands around it
        assert spelled.count(end) == ids.count(end)
        assert ours.decode(spelled, skip_special=False) == text

    def test_properties(self, smollm2_pair: tuple[Tokenizer, Any]) -> None:
        ours, _ = smollm2_pair
        assert ours.vocab_size == 49152
        assert ours.eos_ids == {0, 2, 4}
        assert ours.has_chat_template
        assert ours._backend.token_to_id("<|im_end|>") == 2

    def test_pieces_are_whole_characters(self, smollm2_pair: tuple[Tokenizer, Any]) -> None:
        ours, _ = smollm2_pair
        stream = ours.stream()
        text = "😀 Привет 👨‍👩‍👧 中文"
        ids = ours.encode(text)
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) + stream.flush() == text
        assert len(ids) > sum(bool(piece) for piece in pieces)  # some tokens are only part of a character
        assert not any("\ufffd" in piece for piece in pieces)

    def test_unfinished_character_at_the_end(self, smollm2_pair: tuple[Tokenizer, Any]) -> None:
        ours, _ = smollm2_pair
        stream = ours.stream()
        ids = ours.encode("x😀")[:-1]
        assert "".join(stream.push(token) for token in ids) == "x"
        assert stream.flush() == ours.decode(ids)[1:]
        assert stream.flush() == ""

    def test_special_tokens_are_left_out(self, smollm2_pair: tuple[Tokenizer, Any]) -> None:
        ours, _ = smollm2_pair
        ids = ours.encode("a<|im_end|>b<|im_end|>")
        assert streamed(ours, ids) == "ab"
        shown = ours.stream(skip_special=False)
        assert "".join(shown.push(token) for token in ids) == "a<|im_end|>b<|im_end|>"

    def test_lone_surrogate(self, smollm2_pair: tuple[Tokenizer, Any]) -> None:
        with pytest.raises(UsageError, match="not valid Unicode"):
            smollm2_pair[0].encode("bad \udc80 byte")


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(token) for token in ids) + stream.flush()


@pytest.mark.model
def test_many_tokens_are_decoded_as_few_are(smollm2_pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = smollm2_pair
    text = "".join(TEXTS) * 20
    ids = ours.encode(text)
    assert len(ids) > DECODED_AT_ONCE
    for skip_special in (True, False):
        assert ours.decode(ids, skip_special) == ours._backend.decode(ids, skip_special_tokens=skip_special)


def tiny_gguf(path: Path, vocab: int, extra: Callable[[gguf.GGUFWriter], None]) -> Path:
    """The smallest file that opens as a Llama model."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    extra(writer)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    writer.add_tensor("token_embd.weight", np.zeros((vocab, 8), dtype=np.float32))
    for name in square:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((8, 8), dtype=np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_unknown_tokenizer(tmp_path: Path) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("bert")
        writer.add_token_list(["a", "b"])

    path = tiny_gguf(tmp_path / "x.gguf", 2, extra)
    with open_checkpoint(str(path)) as model, pytest.raises(UnsupportedModelError, match="bert"):
        model.tokenizer()


def merge(writer: gguf.GGUFWriter) -> None:
    writer.add_token_merges(["a a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: None, "no vocabulary"),
        (lambda w: w.add_token_list(["a"]), "no merges"),
        (
            lambda w: (w.add_token_list(["a"]), w.add_token_types([1, 1]), merge(w)),
            "1 tokens but 2 token types",
        ),
        (lambda w: (w.add_token_list(["a"]), w.add_bos_token_id(5), merge(w)), "outside the vocabulary"),
        (lambda w: (w.add_token_list(["a", "b"]), w.add_token_merges(["ab"])), "not a pair"),
        (lambda w: (w.add_token_list(["a", "b"]), w.add_token_merges(["a c"])), "damaged vocabulary"),
    ],
)
def test_damaged_vocabulary(
    tmp_path: Path, change: Callable[[gguf.GGUFWriter], object], message: str
) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        change(writer)

    path = tiny_gguf(tmp_path / "x.gguf", 2, extra)
    with open_checkpoint(str(path)) as model, pytest.raises(CheckpointError, match=message):
        model.tokenizer()


@pytest.mark.parametrize("padding", [5, 2**32 - 1])
def test_a_padding_token_that_is_none(tmp_path: Path, padding: int) -> None:
    """Files of fine-tunes say so. It shapes no answer, and llama.cpp passes over it, too."""

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["a", "b", "ab"])
        writer.add_token_merges(["a b"])
        writer.add_pad_token_id(padding)

    with open_checkpoint(str(tiny_gguf(tmp_path / "x.gguf", 2, extra))) as model:
        assert model.tokenizer().encode("ab", False) == [2]


def hf_tokenizer_files(directory: Path, **settings: Any) -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(5)
    backend.save(str(directory / "tokenizer.json"))
    document = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        **settings,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "settings",
    [{}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}, {"pad_token": "<pad>"}],
)
def test_hf_directory_equals_transformers(hf_llama: HFLlama, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    directory = hf_llama()
    hf_tokenizer_files(
        directory,
        chat_template="{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}",
        **settings,
    )
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    with open_checkpoint(str(directory)) as model:
        ours = model.tokenizer()
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text, truncation=False), text
        assert ours.eos_ids == {1, 2}  # tokenizer_config.json's and config.json's
        messages = [{"role": "user", "content": "x"}]
        assert ours.template.render(messages, add_generation_prompt=True) == "<s>[x]"
        assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)["input_ids"]


def test_generation_config_wins_and_template_file(hf_llama: HFLlama) -> None:
    directory = hf_llama()
    hf_tokenizer_files(directory, chat_template="old")
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    (directory / "chat_template.jinja").write_text("new")
    with open_checkpoint(str(directory)) as model:
        assert model.tokenizer().eos_ids == {1, 9}
        chat = [{"role": "user", "content": "x"}]
        assert model.tokenizer().template.render(chat, add_generation_prompt=True) == "new"
        assert model.tokenizer() is model.tokenizer()
    (directory / "chat_template.jinja").write_bytes(b"x" * (2**22 + 1))
    with open_checkpoint(str(directory)) as model, pytest.raises(CheckpointError, match="has more than"):
        model.tokenizer()


@pytest.mark.parametrize("template", [None, "<start_of_turn>{{ messages }}<end_of_turn>"])
def test_turns_end_by_their_text_where_no_file_says_so(hf_llama: HFLlama, template: str | None) -> None:
    directory = hf_llama(vocab_size=512)
    hf_tokenizer_files(
        directory,
        chat_template=template,
        added_tokens_decoder={
            "500": {"content": "<|im_end|>", "special": True},
            "501": {"content": "<end_of_turn>", "special": False},  # an end where the template writes it
            "502": {"content": "<|fim_pad|>", "special": True},
        },
    )
    with open_checkpoint(str(directory)) as model:
        ours = model.tokenizer()
        token_id = ours._backend.token_to_id
        ends = {1, 2, token_id("<|im_end|>"), *([token_id("<end_of_turn>")] if template else [])}
        assert ours.eos_ids == ends


def test_a_text_that_goes_on_keeps_the_space_between_words(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "x.gguf", sentencepiece())
    ours = gguf_tokenizer(GGUFHeader(MappedFile(path)))
    ids = ours.encode("the quick 😀 brown", False)
    for cut in range(len(ids) + 1):
        stream = ours.stream(after=ids[:cut])
        rest = "".join(map(stream.push, ids[cut:])) + stream.flush()
        if "\ufffd" not in rest:  # the cut is between characters
            assert ours.decode(ids[:cut]) + rest == "the quick 😀 brown"
    after_special = ours.stream(after=ours.encode("the<s>", False))
    assert after_special.push(ours.encode("the", False)[0]) == "the"


def test_hf_directory_without_tokenizer(hf_llama: HFLlama) -> None:
    directory = hf_llama()
    with open_checkpoint(str(directory)) as model:
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            model.tokenizer()
        (directory / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match="damaged"):
            model.tokenizer()
