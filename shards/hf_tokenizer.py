"""The tokenizer of a HuggingFace directory."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ..swarm.confined.process import Bounds, ConfinedProcess, EndedError
from ..swarm.errors import CheckpointError, UnsupportedModelError
from ..swarm.terminal_text import one_line
from .bounded_json import read_bytes
from .chat_template import MAX_SOURCE
from .config import ModelConfig
from .hf_config import read_json
from .tokenizer import Tokenizer, is_panic
from .tokenizer_check import normalizes_in_linear_time, takes_linear_time

MAX_FILE_BYTES = 128 * 2**20
"""Of a tokenizer.json; the largest in use have 35 MB."""
MAX_TEXT_BYTES = 8 * 1024
"""Of one text in it but for a table of Unicode: a token comes from the model as text, and so costs whoever
reads the answer, and a trie of tokens is as deep as the longest. Some hundred bytes are usual."""
MAX_ADDED = 64 * 1024
"""Tokens that tokenizer_config.json adds; some thousand are usual."""
LOAD_BOUNDS = Bounds(memory_bytes=4 * 2**30, cpu_s=20, wall_s=60.0)
"""Of loading a tokenizer.json that runs its own steps on texts of its own."""
_PROGRAM = Path(__file__).with_name("tokenizer_program.py")
_NORMALIZED = re.compile(rb'"normalized"\s*:\s*true|\\u00[2-7]')
"""In a file with tokens that are normalized while it is loaded; keys may be spelled with escapes."""

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def hf_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """From tokenizer.json, and where there tokenizer_config.json, special_tokens_map.json, chat template.

    What is put around a text (begin-of-text, …) is tokenizer.json's word: transformers, too, ignores
    ``add_bos_token`` beside it. CheckpointError for files that are missing or damaged.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no tokenizer.json",
            hint="Save it from transformers once: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    backend = _read(path)
    takes_linear_time(backend, directory.name)  # raises for steps that multiply, before more tokens take them
    settings = _optional_json(directory / "tokenizer_config.json")
    named = _named_tokens({**_optional_json(directory / "special_tokens_map.json"), **settings})
    _add_tokens(backend, settings, named)
    special = {name: token.content for name, token in named.items()}
    eos = set(config.eos_token_ids)
    if not eos and (token := special.get("eos_token")) and (index := backend.token_to_id(token)) is not None:
        eos.add(index)
    return Tokenizer(
        backend,
        eos_ids=eos,
        special_tokens=special,
        chat_template=_chat_template(directory, settings),
        origin=directory.name,
    )


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
            f"{path} is damaged: {one_line(str(error))}", hint="Download it again."
        ) from error


def _try_out(content: bytes, path: Path) -> None:
    """Load it where that can be ended: the library holds the interpreter meanwhile, so not even Ctrl-C would
    end it here."""
    opening = {"content": content.decode(errors="replace"), "markers": []}
    process = ConfinedProcess(_PROGRAM, ("tokenizers",), opening, LOAD_BOUNDS)
    try:
        process.opened()
    except EndedError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}", hint="Download it again.") from None
    finally:
        process.close()


def _check_texts(content: bytes, path: Path) -> None:
    """Seen from the outside: what is between two quotes, of which those after a backslash are none."""
    data = np.frombuffer(content, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    quotes = quotes[data[np.maximum(quotes - 1, 0)] != ord("\\")]
    edges = np.concatenate([[0], quotes, [len(content)]])
    for start in edges[:-1][np.diff(edges) > MAX_TEXT_BYTES]:
        before = content[max(0, start - 64) : start]  # not all of it: there may be thousands of such texts
        if not before.rstrip().endswith(b'"precompiled_charsmap":'):
            raise CheckpointError(f"{path} holds a token or text of over {MAX_TEXT_BYTES} bytes")


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _named_tokens(settings: dict[str, Any]) -> dict[str, AddedToken]:
    named = {}
    for name in _NAMES:
        value = settings.get(name)
        if isinstance(value, str):
            named[name] = AddedToken(value, special=True, normalized=False)
        elif isinstance(value, dict) and isinstance(value.get("content"), str):
            named[name] = _added_token(value, special=True)
    return named


def _added_token(entry: dict[str, Any], *, special: bool) -> AddedToken:
    flags = {flag: bool(entry.get(flag, False)) for flag in ("single_word", "lstrip", "rstrip")}
    flags["normalized"] = bool(entry.get("normalized", not special))
    return AddedToken(entry["content"], special=special, **flags)


def _add_tokens(backend: Backend, settings: dict[str, Any], named: dict[str, AddedToken]) -> None:
    """Tokens that only tokenizer_config.json names; those that tokenizer.json knows stay as they are."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = settings.get("added_tokens_decoder")
    entries = sorted(listed.items(), key=_by_id) if isinstance(listed, dict) else []
    if len(entries) > MAX_ADDED:
        raise CheckpointError(f"tokenizer_config.json adds {len(entries)} tokens, {MAX_ADDED} are possible")
    new = []
    for _, entry in entries:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("content"), str)
            and entry["content"] not in known
        ):
            new.append(_added_token(entry, special=bool(entry.get("special", False))))
            known.add(entry["content"])
    if any(token.normalized for token in new) and not normalizes_in_linear_time(backend):
        raise UnsupportedModelError(
            "tokenizer_config.json adds tokens that are normalized with expressions of no known form"
        )
    for special, tokens in groupby(new, key=lambda token: token.special):  # each call costs what all do
        (backend.add_special_tokens if special else backend.add_tokens)(list(tokens))
    backend.add_special_tokens([token for token in named.values() if token.content not in known])


def _by_id(item: tuple[str, Any]) -> int:
    if not (item[0].isascii() and item[0].isdigit() and len(item[0]) < 10):
        raise CheckpointError(
            f"tokenizer_config.json has an added token under {item[0]!r:.60}, expected its number"
        )
    return int(item[0])


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else (``default``) of tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return read_bytes(path, 4 * MAX_SOURCE).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"cannot read {path}: {error}") from None
    template = _optional_json(directory / "chat_template.json").get(
        "chat_template", settings.get("chat_template")
    )
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next((entry.get("template") for entry in named), None)
    return template if isinstance(template, str) else None
