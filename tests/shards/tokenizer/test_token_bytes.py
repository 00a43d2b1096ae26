from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.tokenizer.token_bytes import TokenBytes, byte_spelling


def test_byte_level_tokens_are_the_bytes_that_they_spell() -> None:
    spelling = byte_spelling()
    halves = [spelling[byte] for byte in "é".encode()]
    vocabulary = {piece: n for n, piece in enumerate([*spelling, "".join(halves), "Ġthe"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["一"])
    of = TokenBytes(backend).of
    assert [of(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [of(n) for n in range(256, 261)] == ["é".encode(), b" the", b"<|end|>", "一".encode(), b""]


def test_sentencepiece_tokens_have_spaces_and_byte_tokens_are_bytes() -> None:
    vocabulary = {"<unk>": 0, "<0xC3>": 1, "▁the": 2, "▁▁": 3, "<0xZZ>": 4}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    of = TokenBytes(backend).of
    assert [of(n) for n in range(6)] == [b"<unk>", b"\xc3", b" the", b"  ", b"<0xZZ>", b""]


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(prefix="##")])
def test_other_decoders_tell_by_what_a_token_adds(decoder: decoders.Decoder | None) -> None:
    backend = Backend(models.WordLevel(vocab={"a": 0, "word": 1, "##ing": 2}, unk_token="a"))
    if decoder is not None:
        backend.decoder = decoder
    of = TokenBytes(backend).of
    assert of(1) == b" word"
    assert of(2) == (b" ##ing" if decoder is None else b"ing")
    assert of(3) == b""


@pytest.mark.model
def test_bytes_of_a_text_s_tokens_are_the_text_s(smollm2_path: Path) -> None:
    text = "naïve 中文 😀👍🏽 \t\n e\u0301 <|im_start|>user def f(x):\n    return x**2"
    with open_checkpoint(str(smollm2_path)) as model:
        tokenizer = model.tokenizer()
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes(token) for token in ids).decode() == text
    assert any(b"\xf0" in tokenizer.token_bytes(token) for token in ids)
    assert tokenizer.special_ids() >= tokenizer.eos_ids
