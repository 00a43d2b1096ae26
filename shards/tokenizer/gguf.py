"""The tokenizer that a GGUF file describes, with the ids that the model's original tokenizer gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ...swarm.terminal_text import one_line
from ..chat.template_set import gguf_templates
from ..formats.gguf.header import GGUFHeader
from ..formats.values.fields import Fields
from ..formats.values.shown import shown
from .gguf_vocabulary import GGUFVocabulary, TokenType, read_vocabulary
from .precheck import gguf_kind
from .splitting import DEFAULT, GPT2_SPLIT, Splitting
from .token_bytes import byte_spelling
from .tokenizer import Tokenizer, is_panic

logger = logging.getLogger(__name__)

MAX_CUT_CHARACTERS = 2**28
"""The squares of all tokens' lengths may add up to this, if merges are made by cutting each token everywhere.
A vocabulary of 256,000 has a tenth of it."""
_SPACE = "▁"
_WHOLE = frozenset(map(int, (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)))
"""The types of tokens that stay whole wherever they stand in a text."""
_KEPT_BESIDE = frozenset(("<unk>", "<s>", "<|endoftext|>"))
"""Special tokens of Phi-3 that leave the whitespace behind them alone."""


def gguf_tokenizer(header: GGUFHeader) -> Tokenizer:
    """CheckpointError for a vocabulary missing or damaged, UnsupportedModelError for kinds we cannot read."""
    kind = gguf_kind(header)
    vocabulary = read_vocabulary(header)
    read = Fields(header.metadata, str(header.file.path))
    try:
        if kind.is_byte_level:
            splitting = kind.splitting or _guessed(header.file.path.name)
            backend, begins = _byte_level(header, vocabulary, splitting), splitting.begins
        else:
            backend, begins = _sentencepiece(header, vocabulary, read), True
        _add_special_tokens(backend, vocabulary, eats_space=_is_phi3(read))
        _add_post_processor(backend, read, vocabulary.special, begins=begins)
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
        eos_ids=vocabulary.ends,
        special_tokens=vocabulary.special,
        chat_template=gguf_templates(header),
        origin=header.file.path.name,
    )


def _guessed(where: str) -> Splitting:
    """The splitting that llama.cpp assumes for a file that names none."""
    logger.warning(
        "%s does not say how it splits text (tokenizer.ggml.pre): a guess is used, answers may be worse. "
        "Convert the model anew.",
        where,
    )
    return DEFAULT


def _byte_level(header: GGUFHeader, vocabulary: GGUFVocabulary, splitting: Splitting) -> Backend:
    """Byte-level BPE, as GPT-2 has it: each byte of the text is spelled as one letter."""
    merges = _merges(header)
    backend = Backend(
        BPE(vocab=_spelled(vocabulary), merges=merges, fuse_unk=False, ignore_merges=splitting.ignore_merges)
    )
    *before, last = splitting.expressions
    steps: list[Any] = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in before]
    by_itself = last == GPT2_SPLIT  # the step that spells bytes can do that one
    if not by_itself:
        steps.append(pre_tokenizers.Split(Regex(last), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_itself))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    return backend


def _spelled(vocabulary: GGUFVocabulary) -> dict[str, int]:
    """The ids by spellings in which each letter is a byte; a few files spell some tokens as text."""
    spelling = byte_spelling()
    alphabet, ids = set(spelling), dict(vocabulary.ids)
    if alphabet.issuperset("".join(ids)):
        return ids
    for token, index in vocabulary.ids.items():
        if vocabulary.types[index] == TokenType.NORMAL and not alphabet.issuperset(token):
            spelled = "".join(spelling[byte] for byte in token.encode())
            if spelled not in ids:
                del ids[token]
                ids[spelled] = index
    return ids


def _sentencepiece(header: GGUFHeader, vocabulary: GGUFVocabulary, read: Fields) -> Backend:
    """SentencePiece BPE of Llama 1 and 2: spaces are ``▁``, unknown characters their bytes.

    A text, and what follows a special token in it, begins with a space of its own unless the file says no.
    """
    merges = _merges(header) or _merges_by_score(header, vocabulary)
    backend = Backend(BPE(vocab=vocabulary.ids, merges=merges, fuse_unk=True, byte_fallback=True))
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if read.flag("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
        steps.append(decoders.Strip(content=" ", left=1))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges(header: GGUFHeader) -> list[tuple[str, str]]:
    merges: list[Any] = [tuple(merge.split(" ")) for merge in header.strings("tokenizer.ggml.merges")]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise CheckpointError(f"{header.file.path} has a merge that is not a pair: {shown(' '.join(wrong))}")
    return merges


def _merges_by_score(header: GGUFHeader, vocabulary: GGUFVocabulary) -> list[tuple[str, str]]:
    scores = header.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.types):
        raise CheckpointError(
            f"{header.file.path} has {len(vocabulary.types)} tokens but {len(scores)} scores"
        )
    made = {token: scores[index] for token, index in vocabulary.ids.items() if vocabulary.is_text(index)}
    merges = merges_of_scores(vocabulary.ids, made)
    if len(merges) > 1 and len({made[left + right] for left, right in merges}) == 1:
        raise CheckpointError(
            f"{header.file.path} gives all tokens the same score, so how they are put together is lost",
            hint="Convert the model anew, or get it from another source.",
        )
    return merges


def merges_of_scores(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Each way to make a token of two others: best score first, then longest left, then longest right.
    ``scores``: of tokens that are made so."""
    if sum(len(token) ** 2 for token in scores) > MAX_CUT_CHARACTERS:
        raise CheckpointError("the vocabulary has too many long tokens")
    found: list[tuple[float, str, str]] = []
    for token, score in scores.items():
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        local = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        local.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += ((score, left, right) for left, right in local)
    found.sort(key=lambda entry: (entry[0], len(entry[1]), len(entry[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _add_special_tokens(backend: Backend, vocabulary: GGUFVocabulary, *, eats_space: bool) -> None:
    """Control tokens and user-defined ones stay whole wherever they stand in a text."""
    kinds = {index: kind for index, kind in enumerate(vocabulary.types) if kind in _WHOLE}
    control, user = [], []
    for token, index in vocabulary.ids.items():
        if index not in kinds or backend.token_to_id(token) != index:
            continue
        if kinds[index] == TokenType.USER_DEFINED:
            user.append(AddedToken(token, normalized=False, special=False, rstrip=eats_space))
        else:
            eats = eats_space and token not in _KEPT_BESIDE
            control.append(AddedToken(token, normalized=False, special=True, rstrip=eats))
    backend.add_special_tokens(control)
    backend.add_tokens(user)


def _is_phi3(read: Fields) -> bool:
    name = read.optional_text("general.name") or ""
    return any(spelling in name.lower() for spelling in ("phi-3", "phi3"))


def _add_post_processor(backend: Backend, read: Fields, special: Mapping[str, str], *, begins: bool) -> None:
    """Begin-of-text and end-of-text around an encoded text. ``begins``: where the file does not say."""
    before = special.get("bos_token") if read.flag("tokenizer.ggml.add_bos_token", begins) else None
    after = special.get("eos_token") if read.flag("tokenizer.ggml.add_eos_token", False) else None
    used = [token for token in dict.fromkeys((before, after)) if token is not None]
    template = [*([before] if before else []), "$A", *([after] if after else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, backend.token_to_id(token)) for token in used]
    )
