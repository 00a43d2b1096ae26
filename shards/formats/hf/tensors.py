"""The tensors of a HuggingFace checkpoint as its configuration describes them."""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import replace
from itertools import islice

from ....swarm.errors import CheckpointError
from ...families.by_mlx import written_by_mlx
from ...families.named_source import NamedSource, next_blocks
from ...families.names import options
from ...families.places import Place, next_places, places
from ...families.rows.table import FAMILIES
from ..config import ModelConfig
from ..quantized.source import plain_names, with_quantized
from ..tensors import EMBEDDING, HEAD, TensorSource
from ..values.shown import shown
from .foreign_tensors import foreign_tensors

_ROOTS = ("model.", "language_model.model.", "model.language_model.", "language_model.", "backbone.")
"""What names of the text part begin with: the middle ones in models that see or hear, too, the last one in
Nemotron-H."""
_OF_MAKERS = "tok_embeddings.weight"
"""A tensor of Meta's and of Mistral's own files."""
_HEADS = (HEAD, f"language_model.{HEAD}", f"model.language_model.{HEAD}")


def stored_places(config: ModelConfig, present: Collection[str]) -> tuple[ModelConfig, dict[str, Place]]:
    """Where each of our tensors is among ``present``, the names of all files; and the configuration with what
    these names tell: a head in the file is the model's head, whatever ``tie_word_embeddings`` says, as in
    transformers."""
    config, rooted = _rooted(config, plain_names(present))
    return config, _real(rooted, places(config, FAMILIES[config.family].tensors, "model.layers.{}.", rooted))


def next_stored_places(config: ModelConfig, present: Collection[str]) -> dict[str, Place]:
    """The same of the blocks that guess further tokens; none where the files have none that are known."""
    family = FAMILIES[config.family]
    if family.next is None:
        return {}
    config, rooted = _rooted(config, plain_names(present))
    return _real(rooted, next_places(config, family.next, family.tensors, rooted))


def _real(rooted: _Rooted, found: dict[str, Place]) -> dict[str, Place]:
    return {name: place._replace(stored=rooted.real(place.stored)) for name, place in found.items()}


def _rooted(config: ModelConfig, present: Collection[str]) -> tuple[ModelConfig, _Rooted]:
    names = FAMILIES[config.family].tensors
    embedding = options(names.get(EMBEDDING.removesuffix(".weight"), EMBEDDING.removesuffix(".weight")))[0]
    root = _root(present, f"{embedding.name.removeprefix('model.')}.weight")
    outer = root.removesuffix("model.") if root == "model." or root.endswith(".model.") else root
    head = next((name for name in (*_HEADS, outer + HEAD) if name in present), None)
    if head is not None:
        config = replace(config, tie_word_embeddings=False)
    return config, _Rooted(present, root, head)


def _root(present: Collection[str], first: str) -> str:
    """What the names of the text part begin with, by that of its embedding, ``first``: nothing in a base
    model that was saved alone; what wrapped a model in training (``module.``, ``_orig_mod.``,
    ``base_model.model.``) may come before it."""
    known = [root for root in _ROOTS if root + first in present]
    others = (name.removesuffix(first) for name in present if name == first or name.endswith("." + first))
    return (known or list(islice(others, 2)) or [_ROOTS[0]])[0]


class _Rooted:
    """Names as if the text part was alone."""

    def __init__(self, present: Container[str], root: str, head: str | None) -> None:
        self._present, self._root, self._head = present, root, (head or HEAD).removesuffix(HEAD)

    def real(self, name: str) -> str:
        if name.startswith("model."):
            return self._root + name.removeprefix("model.")
        return self._head + name if name.startswith("lm_head.") else name

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.real(name) in self._present


def checked_tensors(config: ModelConfig, source: TensorSource, where: str) -> tuple[ModelConfig, NamedSource]:
    """The configuration, with what only the tensors tell, and all of the model's tensors, quantized ones put
    together. CheckpointError, UnsupportedModelError: see ``NamedSource``."""
    if config.foreign is not None:
        return foreign_tensors(config, config.foreign, source, where)
    _refuse_unlike(source.manifest, where)
    config, found = stored_places(config, source.manifest)
    if not config.tie_word_embeddings and found[HEAD].stored not in plain_names(source.manifest):
        raise CheckpointError(
            f"{where} has no head ({HEAD}): it is a base model that was saved without one",
            hint="Take the model that writes text (…ForCausalLM), or a GGUF file of it.",
        )
    family = FAMILIES[config.family]
    if family.mlx:
        found = written_by_mlx(config, found, {name: info.shape for name, info in source.manifest.items()})
    behind = next_stored_places(config, source.manifest)
    shapes = {place.stored: place.whole for place in (*found.values(), *behind.values())}
    source = with_quantized(source, shapes, config.quantization, where)
    ignored = "|".join(filter(None, (family.ignored, next_blocks(config, "layers.{}."))))
    return config, NamedSource(source, found, where, ignored=ignored, behind=behind)


def _refuse_unlike(names: Collection[str], where: str) -> None:
    """CheckpointError for tensors under names that are not transformers', but known."""
    if _OF_MAKERS in names:
        raise CheckpointError(
            f"{where} has the names of its maker's own format ({_OF_MAKERS}), which is not read",
            hint="Take the same model as transformers has it, or as a GGUF file.",
        )
    if adapter := next((name for name in names if ".lora_A." in name or ".lora_embedding_A" in name), None):
        raise CheckpointError(
            f"{where} holds an adapter beside its weights ({shown(adapter)})",
            hint="Merge the two with peft (merge_and_unload), save the result, and give its directory.",
        )
