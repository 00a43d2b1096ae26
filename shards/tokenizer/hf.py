"""The tokenizer of a HuggingFace directory."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ...swarm.confined.process import Bounds, ConfinedProcess, EndedError
from ...swarm.errors import CheckpointError, UnsupportedModelError
from ...swarm.terminal_text import one_line
from ..chat.template import MAX_SOURCE
from ..chat.template_set import TemplateSource, texts_of
from ..formats.bounded_json import read_bytes
from ..formats.config import ModelConfig
from ..formats.hf.config import read_json
from ..formats.not_a_model import download_hint
from ..formats.values.fields import Fields
from ..formats.values.shown import shown
from .check import normalizes_in_linear_time, takes_linear_time
from .end_tokens import TURN_ENDS, end_tokens
from .precheck import check_directory
from .tokenizer import Tokenizer, is_panic

MAX_FILE_BYTES = 128 * 2**20
"""A tokenizer.json has at most this many bytes; the largest in use have 35 MB."""
MAX_TEXT_BYTES = 8 * 1024
"""One text in it has at most this many bytes, except for a table of Unicode. A token comes from the model as
text, which costs the reader of the answer, and a trie of tokens is as deep as the longest. Some hundred bytes
are usual."""
MAX_ADDED = 64 * 1024
"""tokenizer_config.json adds at most this many tokens; some thousand are usual."""
LOAD_BOUNDS = Bounds(memory_bytes=4 * 2**30, cpu_s=20, wall_s=60.0)
"""The bounds of loading a tokenizer.json that runs its own steps on its own texts."""
_PROGRAM = Path(__file__).with_name("program.py")
_NORMALIZED = re.compile(rb'"normalized"\s*:\s*true|\\u00[2-7]')
"""Found in a file with tokens that are normalized while it is loaded; keys may be spelled with escapes."""

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def hf_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """From tokenizer.json, and where there tokenizer_config.json, special_tokens_map.json, chat template.

    What is put around a text (begin-of-text, …) follows tokenizer.json: transformers also ignores
    ``add_bos_token`` beside it. CheckpointError for files that are missing or damaged.
    """
    check_directory(directory)
    backend = _read(directory / "tokenizer.json")
    takes_linear_time(backend, directory.name)  # raises for steps that multiply, before more tokens take them
    settings = _optional(directory / "tokenizer_config.json")
    if says_no_space(settings):
        take_prefix_space_off(backend)
    named = _named_tokens(_optional(directory / "special_tokens_map.json"), settings)
    _add_tokens(backend, settings, named)
    special = {name: token.content for name, token in named.items()}
    templates = _chat_template(directory, settings)
    return Tokenizer(
        backend,
        eos_ids=_ends(backend, config, special.get("eos_token"), texts_of(templates)),
        special_tokens=special,
        chat_template=templates,
        origin=directory.name,
    )


def _ends(backend: Backend, config: ModelConfig, eos: str | None, template: str) -> frozenset[int]:
    """Those that config.json, generation_config.json or tokenizer_config.json names, and ends of turns known
    by their text, among tokens that are special or that the chat template writes."""
    found = {
        token.content: index
        for index, token in backend.get_added_tokens_decoder().items()
        if token.content in TURN_ENDS and (token.special or token.content in template)
    }
    named = {*config.eos_token_ids}
    if eos is not None and (index := backend.token_to_id(eos)) is not None:
        named.add(index)
    return frozenset(token for token in end_tokens(named, found) if token < config.vocab_size)


def _read(path: Path) -> Backend:
    content = read_bytes(path, MAX_FILE_BYTES)
    _check_texts(content, path)
    if _NORMALIZED.search(content):
        _try_out(content, path)
    try:
        return Backend.from_buffer(content)
    except BaseException as error:  # the tokenizers library raises nothing narrower, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(
            f"{path} is damaged: {one_line(str(error))}", hint=download_hint(content)
        ) from error


def _try_out(content: bytes, path: Path) -> None:
    """Load it in a process that can be ended: the library holds the interpreter meanwhile, so not even Ctrl-C
    would end it here."""
    opening = {"content": content.decode(errors="replace"), "markers": []}
    process = ConfinedProcess(_PROGRAM, ("tokenizers",), opening, LOAD_BOUNDS)
    try:
        process.opened()
    except EndedError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}", hint="Download it again.") from None
    finally:
        process.close()


def _check_texts(content: bytes, path: Path) -> None:
    """Checks texts without parsing the JSON: a text is between two quotes, and a quote after a backslash does
    not count."""
    data = np.frombuffer(content, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    quotes = quotes[data[np.maximum(quotes - 1, 0)] != ord("\\")]
    edges = np.concatenate([[0], quotes, [len(content)]])
    for start in edges[:-1][np.diff(edges) > MAX_TEXT_BYTES]:
        before = content[max(0, start - 64) : start]  # not all of it: there may be thousands of such texts
        if not before.rstrip().endswith(b'"precompiled_charsmap":'):
            raise CheckpointError(f"{path} holds a token or text of over {MAX_TEXT_BYTES} bytes")


def _optional(path: Path) -> Fields:
    """A file that may be missing."""
    return Fields(read_json(path) if path.is_file() else {}, str(path))


def _named_tokens(*sources: Fields) -> dict[str, AddedToken]:
    """The special tokens by role; the last of ``sources`` that names one counts."""
    named = {}
    for source in sources:
        for name in _NAMES:
            if source.is_text(name):
                named[name] = AddedToken(source.text(name), special=True, normalized=False)
            elif (entry := source.section(name)) is not None:
                named[name] = _added_token(entry, special=True)
    return named


def _added_token(entry: Fields, *, special: bool) -> AddedToken:
    return AddedToken(
        entry.text("content"),
        special=special,
        single_word=entry.flag("single_word", False),
        lstrip=entry.flag("lstrip", False),
        rstrip=entry.flag("rstrip", False),
        normalized=entry.flag("normalized", not special),
    )


def _add_tokens(backend: Backend, settings: Fields, named: dict[str, AddedToken]) -> None:
    """Tokens that only tokenizer_config.json names; those that tokenizer.json knows stay as they are."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = settings.section("added_tokens_decoder")
    entries = [] if listed is None else listed.inner()
    if len(entries) > MAX_ADDED:
        raise CheckpointError(f"{settings.named('added_tokens_decoder')} adds over {MAX_ADDED} tokens")
    new = []
    for _, entry in sorted(entries, key=_by_id):
        token = _added_token(entry, special=entry.flag("special", False))
        if token.content not in known:
            new.append(token)
            known.add(token.content)
    if any(token.normalized for token in new) and not normalizes_in_linear_time(backend):
        raise UnsupportedModelError(
            "tokenizer_config.json adds tokens that are normalized with expressions of an unknown form"
        )
    for special, tokens in groupby(new, key=lambda token: token.special):  # each call costs what all do
        (backend.add_special_tokens if special else backend.add_tokens)(list(tokens))
    backend.add_special_tokens([token for token in named.values() if token.content not in known])


def _by_id(item: tuple[str, Fields]) -> int:
    number, entry = item
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise CheckpointError(
            f"{entry.where}: added_tokens_decoder has a token under {shown(number)}, expected its number"
        )
    return int(number)


def _chat_template(directory: Path, settings: Fields) -> TemplateSource | None:
    """chat_template.jinja, else chat_template.json, else of tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return read_bytes(path, 4 * MAX_SOURCE).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from None
    own = _optional(directory / "chat_template.json")
    home = own if own.has("chat_template") else settings
    if home.is_text("chat_template"):
        return home.text("chat_template")
    # Several have a name each; of two with the same name the last counts, as in transformers.
    return {each.text("name"): each.text("template") for each in home.sections("chat_template")} or None


_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
_SAYING = {"add_prefix_space": (False,), "tokenizer_class": _CLASSES}


def says_no_space(settings: Fields) -> bool:
    """``settings``: of tokenizer_config.json."""
    return all(settings.has(key) and settings.is_one_of(key, values) for key, values in _SAYING.items())


def take_prefix_space_off(backend: Backend) -> None:
    """SentencePiece then puts no space before a text, and none is taken off what is decoded.

    This is for models that were trained without that space. A tokenizer.json may still have it where
    tokenizer_config.json says ``add_prefix_space: false``: transformers then builds the steps anew for its
    Llama tokenizers, and follows tokenizer.json for all others.
    """
    backend.normalizer = _without(backend.normalizer, normalizers.Sequence([]), "normalizers", "Prepend")
    backend.pre_tokenizer = _without(backend.pre_tokenizer, pre_tokenizers.Sequence([]), "pretokenizers")
    backend.decoder = _without(backend.decoder, decoders.Sequence([]), "decoders", "Strip")


def _without(component: Any, sequence: Any, inner: str, kind: str = "") -> Any:
    """``sequence`` with the steps of ``component`` that are not of ``kind``."""
    if component is None:
        return None
    described = json.loads(component.__getstate__())
    steps = described[inner] if described["type"] == "Sequence" else [described]
    kept = [step for step in steps if step["type"] != kind]
    for step in kept:
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
    sequence.__setstate__(json.dumps({"type": "Sequence", inner: kept}).encode())
    return sequence
