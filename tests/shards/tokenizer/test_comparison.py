"""``scripts/tokenizers`` on small vocabularies, without llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from scripts.lab.tokenizers import __main__ as tokenizer_comparison
from tests.shards.tokenizer.hostile_texts import TEXTS

SPECIAL = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


@pytest.mark.parametrize(
    ("pre", "split", "differ"),
    [
        ("gpt-2", lambda backend: None, False),
        ("smollm", lambda backend: None, True),
        (
            "smollm",
            lambda backend: setattr(
                backend,
                "pre_tokenizer",
                pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer]),
            ),
            False,
        ),
    ],
)
def test_a_name_is_right_or_wrong_for_an_original(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pre: str,
    split: Callable[[Tokenizer], None],
    differ: bool,
) -> None:
    backend = byte_level()
    split(backend)
    path = tokenizer_comparison.write_vocabulary(
        tmp_path / "x.gguf", lambda writer: tokenizer_comparison.gguf_of(backend, pre, writer)
    )
    tokenizer_comparison.compare_original(pre, path, backend, show=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    counts = [int(row.split("|")[4]) for row in rows]
    assert len(counts) == 2
    assert (counts[0] > 0) == differ


def test_the_scores_of_sentencepiece_are_the_order_of_merges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=["▁"], limit_alphabet=60, show_progress=False
    )
    backend.train_from_iterator([text.replace(" ", " ▁") for text in TEXTS], trainer)
    path = tokenizer_comparison.write_vocabulary(
        tmp_path / "x.gguf", lambda writer: tokenizer_comparison.gguf_of(backend, "llama", writer)
    )
    tokenizer_comparison.compare_original("llama", path, backend, show=3)
    first, second = (line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert int(first[4]) == int(second[4]) == 0
    assert int(second[3]) > 500  # texts
