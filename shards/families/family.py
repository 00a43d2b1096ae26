"""What a family is: a row of the table.

How a row is written (``rows/``), in 10 to 40 lines:

- ``types`` and ``architectures``: what config.json calls the family. ``wrappers``: model types of models that
  see or hear, too, of which this family is the text part (``text_config``).
- ``defaults``: every key of transformers' configuration class that the row reads, with its default there.
  ``block`` and ``client`` find each of them in ``settings`` and need no default of their own.
- ``block``: the settings of one block (``settings.block``) → ``BlockConfig``. ``pieces.py`` has the usual
  parts; ``experts.py``, ``latent.py``, ``recurrences.py`` and ``mamba.py`` have those of such blocks.
  ``settings.layer_type(…)`` and ``settings.window()`` say what kind of layer a block is. A key that is
  not read, and that would change the result (``NEUTRAL``), is refused by name: nothing to do in a row.
- ``client``: fields of ``ModelConfig`` for embedding, final norm and head; ``final_norm`` always.
- ``tensors``: for what HuggingFace files call otherwise, or have fused, transposed or alternating: our name
  without ``.weight`` → their name, or what ``names.py`` makes (``fused``, ``stack``). A name is that in the
  block (``self_attn.q_proj``) or, of the client's tensors, the whole one (``model.norm``).
  Rotated pairs: ``rope(…, interleaved=True)`` is enough, the rows of q and k are put in order by that.
- ``aliases``: other names of keys that transformers' class knows → those that the row reads.
- ``derived``: values for keys that follow from others, in files that have these in their place.
- ``fixed``: keys that files of the family have and transformers does not read → the values that its models
  have; any other is refused.
- ``ignored``: pattern of names of tensors that a file may have and a text model does not use.
- ``next``: blocks behind the last that guess further tokens. How many: ``num_nextn_predict_layers``.
- ``mlx``: files of mlx-lm's converter are as ``by_mlx`` says, and in nothing else unlike HuggingFace's.
- ``gguf``: what llama.cpp calls the family, and what is otherwise in its files. None: it does not know it.

A row is listed in ``rows/table.py``, and named in the tables of docs/guides/models.md. Its small models are
in tests/shards/families/cases.py, or in rows/hybrid_cases.py there if blocks keep states. What llama.cpp's
converter does with its tensors and settings is in gguf_files.py beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..formats.blocks.block import BlockConfig
from ..formats.blocks.norm import NormConfig
from .names import Names
from .settings import Settings


@dataclass(frozen=True, slots=True)
class GGUFFamily:
    """``architecture``: ``general.architecture``. ``experts``: of files of that architecture with experts,
    where one has both kinds. ``with_experts``: the architecture of those with experts, where it is another.
    ``neighbours``: llama.cpp turns neighbours for it (its rope type NORM), so rows of q and k lie so in
    files, whatever HuggingFace's have. ``mscale``: what its ``rope.scaling.yarn_log_multiplier`` is
    multiplied by, for transformers' mscale and mscale_all_dim; 0: it has none. ``truncate``: of YaRN, as in
    ``RopeConfig``.
    ``settings``: keys of transformers that its files mean and do not have. ``keys``: of the architecture,
    without its name, of this family alone → transformers'. ``tensors``: as of ``Family``, in llama.cpp's
    names."""

    architecture: str
    experts: bool = False
    with_experts: str = ""
    neighbours: bool = False
    mscale: float = 0.0
    truncate: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Names = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[tuple[str, bool], ...]:
        """Its architectures, and whether files of each have experts."""
        own = (self.architecture, self.experts)
        return (own, (self.with_experts, True)) if self.with_experts else (own,)


@dataclass(frozen=True, slots=True)
class NextFamily:
    """The blocks behind the last that guess further tokens. ``block``, ``norm``: as of ``NextConfig``. In
    HuggingFace files, names of tensors in such a block begin with ``in_block``, those of what is beside it
    with ``beside``. Both count on from the last block, or with ``apart`` from 0. ``tensors``: as of
    ``Family``."""

    block: Callable[[Settings], BlockConfig]
    norm: Callable[[Settings], NormConfig]
    in_block: str = "model.layers.{}."
    beside: str = "model.layers.{}."
    apart: bool = False
    tensors: Names = field(
        default_factory=lambda: {
            "next.embedding_norm": "enorm",
            "next.hidden_norm": "hnorm",
            "next.projection": "eh_proj",
            "next.norm": "shared_head.norm",
        }
    )


@dataclass(frozen=True, slots=True)
class Family:
    """See the module."""

    types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    block: Callable[[Settings], BlockConfig]
    client: Callable[[Settings], dict[str, Any]]
    tensors: Names = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Settings], dict[str, Any]] | None = None
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: str = ""
    wrappers: tuple[str, ...] = ()
    mlx: bool = False
    gguf: GGUFFamily | None = None
    next: NextFamily | None = None

    @property
    def name(self) -> str:
        return self.types[0]
