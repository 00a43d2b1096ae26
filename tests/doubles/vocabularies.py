"""Small tokenizers of the kinds that models have: byte-level BPE, SentencePiece, one character a token."""

from __future__ import annotations

from itertools import product

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from swarm_node.shards.tokenizer.token_bytes import byte_spelling
from swarm_node.shards.tokenizer.tokenizer import Tokenizer

END = "<|end|>"
_WORDS = [
    "name",
    "true",
    "false",
    "null",
    "city",
    "size",
    "the",
    "and",
    "items",
    "children",
    "é",
    "中文",
    "😀",
]
_MARKS = [
    '{"',
    '":',
    '",',
    '"}',
    "[{",
    "}]",
    "}}",
    ": ",
    ", ",
    '": "',
    '", "',
    "\n  ",
    "    ",
    '"a',
    "01",
    "12",
]


def byte_level() -> Tokenizer:
    """All bytes, words, and marks that JSON joins; some characters only in halves."""
    spelling = byte_spelling()

    def spell(text: bytes) -> str:
        return "".join(spelling[byte] for byte in text)

    pieces = [spell(bytes([byte])) for byte in range(256)]
    merges: list[tuple[str, str]] = []
    for word in [*_WORDS, *_MARKS, *(" " + word for word in _WORDS)]:
        data = word.encode()
        for end in range(2, len(data) + 1):
            pair = (spell(data[: end - 1]), spell(data[end - 1 : end]))
            if "".join(pair) not in pieces:
                pieces.append("".join(pair))
                merges.append(pair)
    backend = Backend(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _with_end(backend)


def sentencepiece() -> Tokenizer:
    """Spaces as ``▁``, put before a text as well; characters beyond ASCII as bytes, but for a few."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(code) for code in range(0x21, 0x7F)] + ["é", "中"]
    merges = []
    for left, right in product(["▁", "{", '"', "}", ":", ","], ['"', "{", "}", "a", "1", ":", "▁"]):
        pieces.append(left + right)
        merges.append((left, right))
    backend = Backend(
        models.BPE(
            vocab={piece: n for n, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return _with_end(backend)


def characters() -> Tokenizer:
    """Printable ASCII, a newline, and a few letters beyond."""
    letters = [*map(chr, range(0x20, 0x7F)), "\n", "é", "中", "😀"]
    backend = Backend(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    backend.decoder = decoders.Fuse()
    return _with_end(backend)


def _with_end(backend: Backend) -> Tokenizer:
    backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    end = backend.token_to_id(END)
    return Tokenizer(backend, eos_ids={end}, special_tokens={"eos_token": END}, chat_template=None)


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "characters": characters}
