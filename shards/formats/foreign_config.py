"""A model whose blocks transformers' own layers compute: what we know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...swarm.errors import UnsupportedModelError
from .values.shown import shown

ANOTHER = "Choose a model of a family that runs: docs/guides/models.md#which-models-run lists them."
"""The hint where a model cannot run here, whatever a person does."""
_STATES = frozenset(
    {"falcon_mamba", "jamba", "mamba", "mamba2", "minimax", "recurrent_gemma", "rwkv"}
    | {"xlstm", "zamba", "zamba2"}
)
_STREAMS = frozenset({"deepseek_v4"})
_ENCODERS = frozenset(
    {"albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "mbart", "modernbert", "mt5"}
    | {"roberta", "t5", "wav2vec2", "whisper", "xlm-roberta"}
)


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """``document``: config.json, of which transformers makes the model. ``layers``: what it calls the list of
    its blocks, the last part of the name, such as "layers". ``front``: modules with weights through which
    embedded tokens go before block 0, such as a table of positions; block 0 has them. ``blocks``, ``client``:
    the names in the files of each block's tensors, and of those outside the blocks, once they are known."""

    document: str
    layers: str
    front: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    client: tuple[str, ...] = ()


def refuse_unfit(document: dict[str, Any], where: str) -> None:
    """UnsupportedModelError for well-known types of which no node could hold a part, before anything that
    takes long is imported, or is missing. ``document``: config.json."""
    family = document["model_type"]
    hint = ANOTHER
    if family in _STATES:
        why = "has blocks that keep a state, and is not one of the families with states that run"
        hint = f"Of models with states, Qwen 3.5, Nemotron 3, Granite 4 H, Falcon-H1 and LFM2 run. {ANOTHER}"
    elif family in _STREAMS:
        why = (
            "has keys of several tokens together and several streams of each token: neither is computed here"
        )
    elif family in _ENCODERS:
        why = "is no causal language model: its blocks do not write a text token by token"
    else:
        return
    raise UnsupportedModelError(f"{where}: model family {shown(family)} {why}", hint=hint)
