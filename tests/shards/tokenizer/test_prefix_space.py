"""A directory whose tokenizer.json puts a space before texts, and whose tokenizer_config.json says none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from swarm_node.shards.checkpoint.opening import open_checkpoint
from tests.shards.conftest import HFLlama
from tests.shards.tokenizer.hostile_texts import TEXTS

METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def write_sentencepiece(directory: Path, *, legacy: bool, **settings: object) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    merges = [("▁", "a"), ("a", "b")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    if legacy:
        backend.normalizer = LEGACY
    else:
        backend.pre_tokenizer = METASPACE
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(directory / "tokenizer.json"))
    document = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(document))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_no_space_equals_transformers(hf_llama: HFLlama, name: str, legacy: bool) -> None:
    path = hf_llama(vocab_size=264)
    write_sentencepiece(path, legacy=legacy, tokenizer_class=name, add_prefix_space=False)
    theirs = AutoTokenizer.from_pretrained(path)
    with open_checkpoint(str(path)) as model:
        ours = model.tokenizer()
        for text in ("ab", " ab", "  a b", *TEXTS):
            ids = theirs.encode(text, add_special_tokens=False)
            assert ours.encode(text, False) == ids
            assert ours.decode(ids, False) == theirs.decode(ids)


@pytest.mark.parametrize("says", [{}, {"add_prefix_space": None}, {"add_prefix_space": True}])
def test_a_space_otherwise(hf_llama: HFLlama, says: dict[str, object]) -> None:
    path = hf_llama(vocab_size=264)
    write_sentencepiece(path, legacy=True, tokenizer_class="LlamaTokenizer", **says)
    with open_checkpoint(str(path)) as model:
        ids = model.tokenizer().encode("ab", False)
        assert ids == [262, 261]
        assert model.tokenizer().decode(ids) == "ab"
