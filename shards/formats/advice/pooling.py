"""How a model of embeddings makes one vector of a text, as its files say it in either form."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePath
from typing import Any


class Pooling(StrEnum):
    """Of the normed hidden states of a text's tokens: their mean, or that of the last token."""

    MEAN = "mean"
    LAST = "last"


_IN_GGUF = {1: Pooling.MEAN, 3: Pooling.LAST}
"""llama.cpp's numbers, but for those of models that see both ways (2, cls; 4, rank)."""
_MODES = {"pooling_mode_mean_tokens": Pooling.MEAN, "pooling_mode_lasttoken": Pooling.LAST}

MAX_FOLDER_CHARS = 60
"""Characters of the name of a folder with settings at most: ``1_Pooling`` is usual, and no name of a file may
have more than 255 bytes."""


def pooling_of_gguf(architecture: str, metadata: Mapping[str, Any]) -> Pooling | None:
    """None where the model is not one for embeddings, or for another kind of them."""
    number = metadata.get(f"{architecture}.pooling_type")
    return _IN_GGUF.get(number) if type(number) is int else None


def pooling_folder(steps: object) -> str | None:
    """Of sentence-transformers' modules.json: the folder with the settings of the pooling. None where there
    is none, or a step that we do not know, such as a further matrix."""
    kinds = [_kind(step) for step in steps] if isinstance(steps, list) else []
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None
    folder = steps[1].get("path")  # type: ignore[index]
    if not isinstance(folder, str) or len(folder) > MAX_FOLDER_CHARS:
        return None
    is_one = folder not in ("", "..") and PurePath(folder).name == folder
    return folder if is_one else None  # of one folder inside, and not elsewhere


def pooling_of_settings(values: Mapping[str, Any]) -> Pooling | None:
    """Of the config.json in that folder."""
    asked = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    return _MODES.get(asked[0]) if len(asked) == 1 else None


def _kind(step: object) -> str:
    told = step.get("type") if isinstance(step, dict) else None
    return told.rpartition(".")[2] if isinstance(told, str) else ""
