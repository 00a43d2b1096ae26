"""Tensors of a checkpoint into transformers' own modules, by transformers' own rules of names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ..checkpoint.checkpoint import Checkpoint
from ..formats.qtypes import DENSE
from ..formats.transformers.layered import LayeredModel
from ..models.weight_loader import Progress
from ..torch.tensors.device import DTYPES, tensor_of

_MAX_TABLES = 1 << 30
"""Bytes of the tables that a model computes for itself, such as masks and rotations; most have some
megabytes."""


def load_weights(
    made: LayeredModel,
    checkpoint: Checkpoint,
    names: Collection[str],
    device: torch.device,
    label: str,
    progress: Progress | None,
    *,
    layers: Iterable[int] = (),
    others: Collection[str] | None = None,
) -> int:
    """Gives ``made`` the tensors ``names``, which are those of some of its ``layers`` and of its modules
    ``others``; None: of all modules outside the layers. Returns their bytes in memory.

    CheckpointError for a tensor that is missing or of another shape than the configuration says.
    """
    total, done = sum(checkpoint.manifest[name].nbytes for name in names), 0
    tensors: dict[str, Tensor] = {}
    for name in names:
        raw = checkpoint.tensor(name)
        raw.check_numbers()
        tensors[name] = tensor_of(raw, DTYPES[DENSE[raw.qtype]])
        done += raw.nbytes
        if progress is not None:
            progress(done, total, label)
    checkpoint.release()
    missing = _convert(made, tensors, device)
    inside = tuple(f"{made.path}.{number}." for number in layers)
    outside = None if others is None else [f"{made.model.base_model_prefix}.{name}" for name in others]

    def is_needed(name: str) -> bool:
        if name.startswith(f"{made.path}."):
            return name.startswith(inside)
        return outside is None or name.rpartition(".")[0] in outside

    if others is None:
        made.model.tie_weights(missing_keys=missing, recompute_mapping=False)
    _make_tables(made, device, lambda name: not name.startswith(f"{made.path}.") or name.startswith(inside))
    held = {name: each for name, each in made.model.state_dict().items() if is_needed(name)}
    for name, each in held.items():
        if each.is_meta:
            raise CheckpointError(
                f"{checkpoint.ref.name} has no tensor for {name} of transformers' {made.name}",
                hint="The file is damaged, or is not a complete model.",
            )
    return sum({each.data_ptr(): each.nbytes for each in held.values()}.values())


def _convert(made: LayeredModel, tensors: dict[str, Tensor], device: torch.device) -> set[str]:
    """The names of weights that are still missing."""
    rules = LoadStateDictConfig(
        dtype=made.model.dtype,
        device_map={"": device},
        weight_mapping=get_model_conversion_mapping(made.model),
    )
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded, _ = convert_and_load_state_dict_in_model(made.model, tensors, rules)
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    if loaded.mismatched_keys:
        name, found, expected = sorted(loaded.mismatched_keys)[0]
        raise CheckpointError(
            f"tensor {name} has shape {list(found)}, the configuration says {list(expected)}",
            hint="The file is damaged, or its configuration belongs to another model.",
        )
    if loaded.conversion_errors:
        name = sorted(loaded.conversion_errors)[0]
        raise UnsupportedModelError(f"transformers cannot make {name} of the tensors in the file")
    return set(loaded.missing_keys)


def _make_tables(made: LayeredModel, device: torch.device, is_needed: Callable[[str], bool]) -> None:
    """Buffers that no file holds: transformers computes them where it initialises a model."""
    tables = [(name, each) for name, each in made.model.named_non_persistent_buffers() if is_needed(name)]
    if sum(each.nbytes for _, each in tables) > _MAX_TABLES:
        raise UnsupportedModelError(
            f"transformers' {made.name} makes tables of more than {_MAX_TABLES} bytes"
        )
    for name, each in tables:
        module, _, own = name.rpartition(".")
        made.model.get_submodule(module).register_buffer(
            own, torch.empty_like(each, device=device), persistent=False
        )
    made.model.initialize_weights()
