"""A ``ModelConfig`` from a HuggingFace ``config.json``, read as transformers reads it.

A key that changes what a model computes is read, or has to have the value at which it changes nothing. Tests
compare that with the keys and the defaults of transformers' configuration classes.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....swarm.errors import CheckpointError
from ...families.family import Family
from ...families.model import model_config, refuse_unknown
from ...families.rows.table import BY_ARCHITECTURE, BY_TYPE, unsupported_family
from ...families.settings import Settings
from .. import bounded_json
from ..bounded_json import JsonBounds
from ..config import ModelConfig
from ..quantized.settings import quantization
from ..values.bounds import MAX_VOCAB
from ..values.fields import Fields

BOUNDS = JsonBounds(nbytes=16 << 20, values=1 << 19)
"""The bounds of each small file: config.json has some kilobytes, a tokenizer_config.json up to 1.2 MB."""
MAX_END_TOKENS = 256
"""At most this many tokens may end a text; models have three at most."""
_WHOLE = "ForConditionalGeneration"
"""How architectures of models end that see or hear, too."""
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; CheckpointError for anything else."""
    document = bounded_json.read_json(path, BOUNDS)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="Download it again.")
    return document


def hf_config(document: dict[str, Any], generation: dict[str, Any], where: str) -> ModelConfig:
    """``generation``: generation_config.json, whose end-of-text ids win, as in transformers; may be empty.

    CheckpointError for values of the wrong type, UnsupportedModelError for models we cannot run.
    """
    family, document, names = _family(document, where)
    document = _renamed(document, family.aliases, names, where)
    read = Settings(ChainMap(document, dict(family.defaults)), where, names)
    if family.derived is not None:
        read = Settings(ChainMap(family.derived(read), document, dict(family.defaults)), where, names)
    config = model_config(
        family,
        read,
        eos_token_ids=end_ids(read, generation),
        native_dtype=native_dtype(read),
    )
    refuse_unknown(family, read)
    return replace(config, quantization=quantization(read))


def _family(document: dict[str, Any], where: str) -> tuple[Family, dict[str, Any], dict[str, str]]:
    """By ``model_type``, as in transformers; by the architecture where that is missing. Of a model that sees
    or hears, too, its text part. Gives its keys, and what the file calls those of them that are inside."""
    read = Fields(document, where)
    architectures = read.texts("architectures")
    known = [each for each in architectures if each.lower() in BY_ARCHITECTURE]
    name = read.optional_text("model_type")
    family = BY_TYPE.get(name) if name else BY_ARCHITECTURE[known[0].lower()] if known else None
    if family is None:
        raise unsupported_family(name or (architectures[0] if architectures else None), where)
    if name in family.wrappers:
        if architectures and not any(each.endswith(_WHOLE) for each in architectures) and not known:
            raise unsupported_family(architectures[0], where)
        text = read.section("text_config") or Fields({}, where)
        inner = text.optional_text("model_type")
        family = family if inner is None else BY_TYPE.get(inner, family)
        if inner is not None and inner not in family.types:
            raise unsupported_family(inner, where)
        of_parts = [key for key in document if key.endswith("_config") and key != "quantization_config"]
        whole = {"tie_word_embeddings": True, **document}
        own = {**(document.get("text_config") or {}), "tie_word_embeddings": whole["tie_word_embeddings"]}
        merged = {key: value for key, value in whole.items() if key not in of_parts}
        names = {key: f"text_config.{key}" for key in own.keys() - {"tie_word_embeddings"}}
        return family, {**merged, **own}, names
    if architectures and not known:
        raise unsupported_family(architectures[0], where)
    return family, document, {}


def _renamed(
    document: dict[str, Any], aliases: Mapping[str, str], names: dict[str, str], where: str
) -> dict[str, Any]:
    """Under the names that the family's row reads. ``names``, of the file, are put right. CheckpointError
    where both names are given and the numbers differ: transformers would take either, by the family."""
    inner = {*names}
    for key, name in aliases.items():
        if key not in document:
            continue
        value, other = document[key], document.get(name)
        if other is None:
            document = {**document, name: value}
            del document[key]
            names[name] = names.get(key, key)
        elif (key in inner) == (name in inner) and _differ(value, other):  # in one section
            read = Fields(document, where, names=names)
            raise read.wrong(key, f"{read.shown(name)}, as {name} is")
    return document


def _differ(one: Any, other: Any) -> bool:
    """Lists may spell the same in two ways."""
    return isinstance(one, int | float) and isinstance(other, int | float) and one != other


def is_known(document: dict[str, Any]) -> bool:
    """Whether a family of ours has this ``model_type``, or the document has none."""
    name = document.get("model_type")
    return not isinstance(name, str) or name in BY_TYPE


def native_dtype(read: Fields) -> str:
    """``ModelConfig.native_dtype``."""
    return _DTYPES.get(read.optional_text("dtype") or read.optional_text("torch_dtype") or "", "F32")


def end_ids(read: Fields, generation: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text, by generation_config.json or else by config.json, which ``read`` shows."""
    others = Fields(generation, str(Path(read.where).with_name("generation_config.json")))
    source = others if others.has("eos_token_id") else read
    return source.integers("eos_token_id", most=MAX_VOCAB - 1, entries=MAX_END_TOKENS)
