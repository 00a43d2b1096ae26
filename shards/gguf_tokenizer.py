"""The tokenizer that a GGUF file describes, with the same ids as transformers builds from the same file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from ..swarm.errors import CheckpointError, UnsupportedModelError
from ..swarm.terminal_text import one_line
from .gguf_config import gguf_eos_ids
from .gguf_header import GGUFHeader
from .gguf_templates import gguf_templates
from .token_bytes import byte_spelling
from .tokenizer import Tokenizer, is_panic
from .tokenizer_check import GPT4O_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, TEKKEN_SPLIT

_CONTROL, _USER_DEFINED = 3, 4  # token types of llama.cpp

MAX_TOKEN_CHARACTERS = 8 * 1024
"""Of one token's spelling; the longest in use have some hundred."""
MAX_CUT_CHARACTERS = 2**28
"""The squares of all tokens' lengths together, where merges are made by cutting each token everywhere: a
vocabulary of 256,000 has a tenth of it."""

SPLITS: dict[str, str] = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "dbrx", "smaug-bpe"),
        LLAMA3_SPLIT,
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2_SPLIT),
    "tekken": TEKKEN_SPLIT,
    **dict.fromkeys(("gpt-4o", "llama4"), GPT4O_SPLIT),
}
"""``tokenizer.ggml.pre`` → how text is split before merging. All others split as GPT-2 does.

``smollm`` is among the others, as in transformers; the model's original tokenizer also splits off each digit,
which differs only for digits after two or more spaces or line ends.
"""


def gguf_tokenizer(header: GGUFHeader) -> Tokenizer:
    """CheckpointError for a vocabulary missing or damaged, UnsupportedModelError for kinds we cannot read."""
    metadata = header.metadata
    model = metadata.get("tokenizer.ggml.model")
    tokens = header.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{header.file.path} holds no vocabulary")
    if max(map(len, tokens)) > MAX_TOKEN_CHARACTERS:
        raise CheckpointError(f"{header.file.path} has a token of over {MAX_TOKEN_CHARACTERS} characters")
    types = header.numbers("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{header.file.path} has {len(tokens)} tokens but {len(types)} token types")
    special = _special_tokens(metadata, tokens)
    try:
        if model == "gpt2":
            backend = _byte_level(header, tokens, types, special)
        elif model == "llama":
            backend = _sentencepiece(header, tokens)
        else:
            raise UnsupportedModelError(
                f"tokenizer {model!r} is not supported",
                hint="Supported in GGUF files: gpt2 (BPE) and llama (SPM).",
            )
        _add_special_tokens(backend, tokens, types, special)
        _add_post_processor(backend, metadata, special, by_default=model == "llama")
    except (CheckpointError, UnsupportedModelError):
        raise
    except BaseException as error:  # the tokenizers library raises nothing narrower, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(
            f"{header.file.path} has a damaged vocabulary: {one_line(str(error))}"
        ) from error
    return Tokenizer(
        backend,
        eos_ids=gguf_eos_ids(header),
        special_tokens=special,
        chat_template=gguf_templates(header),
        origin=header.file.path.name,
    )


def _special_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    """``bos_token`` and so on, spelled out, as chat templates want them."""
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            continue
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            raise CheckpointError(f"the {name} token {token!r} is outside the vocabulary of {len(tokens)}")
        special[f"{name}_token"] = tokens[token]
    return special


def _byte_level(
    header: GGUFHeader, tokens: list[str], types: list[int], special: Mapping[str, str]
) -> Backend:
    """Byte-level BPE, as GPT-2 has it: each byte of the text is spelled as one letter."""
    spelling = byte_spelling()
    alphabet = set(spelling)
    whole = set(special.values())
    vocabulary = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not alphabet.issuperset(token) and kind not in (_CONTROL, _USER_DEFINED) and token not in whole:
            token = "".join(spelling[byte] for byte in token.encode())
        vocabulary[token] = index
    backend = Backend(BPE(vocab=vocabulary, merges=_merges(header), fuse_unk=False))
    split = SPLITS.get(str(header.metadata.get("tokenizer.ggml.pre")))
    if split is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(header: GGUFHeader, tokens: list[str]) -> Backend:
    """SentencePiece BPE of Llama 1 and 2: spaces are ``▁``, unknown characters their bytes."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(header)
    if not merges:
        scores = header.numbers("tokenizer.ggml.scores")
        if len(scores) != len(tokens):
            raise CheckpointError(f"{header.file.path} has {len(tokens)} tokens but {len(scores)} scores")
        merges = _merges_of_scores(vocabulary, dict(zip(tokens, scores, strict=True)))
    backend = Backend(BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return backend


def _merges(header: GGUFHeader) -> list[tuple[str, str]]:
    merges = []
    for merge in header.strings("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or " " in right:
            raise CheckpointError(f"{header.file.path} has a merge that is no pair: {merge!r}")
        merges.append((left, right))
    return merges


def _merges_of_scores(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Each way to make a token of two others: best score first, then longest left, then longest right."""
    if sum(len(token) ** 2 for token in vocabulary) > MAX_CUT_CHARACTERS:
        raise CheckpointError("the vocabulary has too many long tokens")
    found: list[tuple[float, str, str]] = []
    for token, score in scores.items():
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        local = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        local.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += ((score, left, right) for left, right in local)
    found.sort(key=lambda entry: (entry[0], len(entry[1]), len(entry[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _add_special_tokens(
    backend: Backend, tokens: list[str], types: list[int], special: Mapping[str, str]
) -> None:
    """Control tokens and user-defined ones stay whole wherever they stand in a text."""
    known = backend.get_vocab(with_added_tokens=False)
    control = [
        token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL and token in known
    ]
    control += [token for token in special.values() if token in known and token not in set(control)]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    user = [
        token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED and token in known
    ]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in user])


def _add_post_processor(
    backend: Backend, metadata: Mapping[str, Any], special: Mapping[str, str], *, by_default: bool
) -> None:
    """Begin-of-text and end-of-text around an encoded text, where the file asks for them."""
    before = special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", by_default) else None
    after = special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    used = [token for token in dict.fromkeys((before, after)) if token is not None]
    template = [*([before] if before else []), "$A", *([after] if after else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, backend.token_to_id(token)) for token in used]
    )
