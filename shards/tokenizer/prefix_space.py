"""The space that SentencePiece puts before a text, for models that were trained without it.

A tokenizer.json may still have it where tokenizer_config.json says ``add_prefix_space: false``: transformers
then builds the steps anew for its Llama tokenizers, and follows tokenizer.json for all others.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, pre_tokenizers

from ..formats.fields import Fields

_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
_SAYING = {"add_prefix_space": (False,), "tokenizer_class": _CLASSES}


def says_no_space(settings: Fields) -> bool:
    """``settings``: of tokenizer_config.json."""
    return all(settings.has(key) and settings.is_one_of(key, values) for key, values in _SAYING.items())


def take_prefix_space_off(backend: Backend) -> None:
    """No space goes before a text any more, and so none is taken off what is decoded."""
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
