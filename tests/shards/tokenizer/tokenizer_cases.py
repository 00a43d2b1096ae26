"""Small vocabularies in GGUF files, each with something that files in use differ by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf

from swarm_node.shards.tokenizer.token_bytes import byte_spelling
from tests.shards.tokenizer.hostile_texts import TEXTS

SPECIAL_TEXTS = (
    "<s>[INST] Hello [/INST]",
    "<s> x</s>y</s> z",
    "<tool> the<tool>the <unk>",
    "the<|im_end|>\n <|im_end|> x",
    "  <s>  ",
    "<think>x</think>",
    "</s></s>",
)
"""More texts, with what is a token of the vocabularies here."""
ALL_TEXTS = (*TEXTS, *SPECIAL_TEXTS)
_WORDS = ("the", "Hello", "quick", "brown", "of", "and", "lo", "the<|", "12", "▁▁", "aaa", "ab")
_CONTROL, _USER, _BYTE, _UNKNOWN, _NORMAL = 3, 4, 6, 2, 1

Write = Callable[[gguf.GGUFWriter], None]


def write_vocabulary(path: Path, extra: Write) -> Path:
    """A file that llama.cpp and this project open for its vocabulary alone."""
    writer = gguf.GGUFWriter(str(path), "llama")
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level(pre: str | None, whole: tuple[str, ...] = (), **keys: bool) -> Write:
    """Each text's letters are merged from its beginning on, and from each word's. ``whole``: tokens that no
    merge leads to."""
    spelling = byte_spelling()
    merges: dict[tuple[str, str], None] = {}
    tokens = dict.fromkeys(spelling)
    special = ("<s>", "</s>", "<|im_end|>", "<tool>", "<think>", "<unk>")
    for text in TEXTS:
        for part in (text, *(" " + word for word in text.split())):
            spelled = "".join(spelling[byte] for byte in part.encode())
            for end in range(1, min(len(spelled), 12)):
                if spelled[: end + 1] in special:
                    break
                merges[spelled[:end], spelled[end]] = None
                tokens[spelled[: end + 1]] = None
    tokens |= dict.fromkeys(whole)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list([*tokens, *special])
        kinds = {"<tool>": _USER, "<think>": _USER, "<unk>": _UNKNOWN}
        writer.add_token_types([_NORMAL] * len(tokens) + [kinds.get(name, _CONTROL) for name in special])
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(len(tokens))
        writer.add_eos_token_id(len(tokens) + 1)
        for key, value in keys.items():
            getattr(writer, f"add_{key}")(value)

    return extra


def sentencepiece(
    score: Callable[[int], float] = lambda index: -float(index),
    kinds: dict[str, int] | None = None,
    **keys: bool,
) -> Write:
    """Words of the texts with all their beginnings, and bytes for the rest."""
    pieces: dict[str, None] = {"▁": None}
    for text in (*_WORDS, *TEXTS):
        for word in text.replace(" ", "▁").replace("▁", " ▁").split(" "):
            for end in range(1, min(len(word), 6) + 1):
                if word.isprintable():
                    beginning, pair = word[:end], word[end - 1 : end + 1]
                    pieces |= dict.fromkeys((beginning, pair, *pair))
    special = {"<unk>": _UNKNOWN, "<s>": _CONTROL, "</s>": _CONTROL, "<tool>": _USER, "<|im_end|>": _NORMAL}
    special |= kinds or {}
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    normal = [piece for piece in pieces if piece and piece not in {*special, *raw}]

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*special, *raw, *normal])
        first = [0.0] * (len(special) + len(raw))
        writer.add_token_scores([*first, *(score(index) for index in range(len(normal)))])
        writer.add_token_types([*special.values(), *[_BYTE] * len(raw), *[_NORMAL] * len(normal)])
        for key, value in keys.items():
            getattr(writer, f"add_{key}")(value)

    return extra


def phi3() -> Write:
    inner = sentencepiece(kinds={"<|endoftext|>": _CONTROL})

    def extra(writer: gguf.GGUFWriter) -> None:
        inner(writer)
        writer.add_name("Phi-3 mini")

    return extra


WHOLE = ("Ġbrown", "quick", "世界", "<s>x")
CASES: dict[str, Write] = {
    "byte level, GPT-2": byte_level("gpt-2"),
    "byte level, no name": byte_level(None),
    "byte level, SmolLM": byte_level("smollm"),
    "byte level, Llama 3, tokens without merges": byte_level("llama-bpe", WHOLE),
    "byte level, Llama 3, BOS turned off": byte_level("llama-bpe", add_bos_token=False),
    "byte level, Qwen 2, BOS and EOS turned on": byte_level("qwen2", add_bos_token=True, add_eos_token=True),
    "sentencepiece": sentencepiece(),
    "sentencepiece, scores in no order": sentencepiece(lambda index: -float(index * 7919 % 10007)),
    "sentencepiece, no space before": sentencepiece(add_space_prefix=False),
    "sentencepiece, BOS off and EOS on": sentencepiece(add_bos_token=False, add_eos_token=True),
    "sentencepiece, marks that are user-defined": sentencepiece(kinds={"<|im_end|>": _USER, "[INST]": _USER}),
    "sentencepiece, Phi-3": phi3(),
}  # fmt: skip


def universal(writer: gguf.GGUFWriter) -> None:
    """Merges that put together whatever a text holds: a token goes as far as what is split lets it."""
    spelling = byte_spelling()
    merges: dict[str, None] = {}
    tokens = dict.fromkeys(spelling)
    for text in TEXTS:
        spelled = "".join(spelling[byte] for byte in text.encode())
        for start in range(len(spelled)):
            for end in range(start + 2, len(spelled) + 1):
                whole = spelled[start:end]
                if whole not in tokens:
                    tokens[whole] = None
                    merges |= dict.fromkeys(f"{whole[:cut]} {whole[cut:]}" for cut in range(1, len(whole)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, "<|begin|>"])
    writer.add_token_types([_NORMAL] * len(tokens) + [_CONTROL])
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
