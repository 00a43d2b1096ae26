"""How a model's makers advise to choose its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class SamplingAdvice:
    """How the makers of a model advise to choose its tokens: options by their names in transformers, None
    where nothing is advised. Values that cannot be are no advice, and no reason to refuse a model."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def of_generation_config(cls, values: Mapping[str, Any]) -> Self:
        """Of generation_config.json; nothing where it says that nothing is drawn."""
        return cls() if values.get("do_sample") is False else cls._of(values, {})

    @classmethod
    def of_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        return cls._of(metadata, _IN_GGUF)

    def given(self) -> dict[str, float]:
        """What is advised, by name."""
        values = {name: getattr(self, name) for name in _ADVISED}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def _of(cls, values: Mapping[str, Any], names: Mapping[str, str]) -> Self:
        found: dict[str, Any] = {}
        for name, (kind, least, most) in _ADVISED.items():
            value: Any = values.get(names.get(name, name))
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and least <= value <= most and value == kind(value):
                found[name] = round(kind(value), 6)  # a GGUF file's have 24 bits
        return cls(**found)


_ADVISED: Mapping[str, tuple[type[int] | type[float], float, float]] = {
    "temperature": (float, 0.0, 2.0),
    "top_k": (int, 0, 2**31 - 1),
    "top_p": (float, 1e-6, 1.0),
    "min_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.01, 100.0),
}
"""The kind of a value, and its bounds: those of the gateway's API."""

_IN_GGUF = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Names as llama.cpp's converter writes them."""

NO_ADVICE = SamplingAdvice()
