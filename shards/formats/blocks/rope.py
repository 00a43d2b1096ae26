"""The settings of rotary position embedding."""

from __future__ import annotations

from dataclasses import dataclass

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..values.bounds import MAX_CONTEXT, MAX_WIDTH, SCALES, check_between, check_count
from ..values.shown import shown

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
THETAS = (1.0, 1e30)
"""The base of rotary frequencies lies between these, both excluded: it must be a float32 number."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position settings, under HuggingFace's names (``rope_parameters`` of config.json).

    ``rotary_dim``: the first so many dimensions of a head are turned, the others stay as they are.
    ``interleaved``: in the file, neighbours (0, 1), (2, 3), … turn together and not halves (0, dim / 2), …:
    a loader puts the rows of q and k in the order of halves, so that what computes knows halves alone.
    ``original_max_position_embeddings`` is always filled in (the model's maximum where the file has none).
    ``attention_factor``, ``mscale`` and ``mscale_all_dim`` are None where the file leaves them to the
    formula; a GGUF file may give a factor for any type. ``frequency_factors``: one divisor per inverse
    frequency, ``rotary_dim // 2`` of them, or empty: GGUF files of llama3-scaled models carry these
    (``rope_freqs.weight``) and not the formula's inputs. ``short_factors``, ``long_factors``: the same two
    for "longrope": of sessions of up to ``original_max_position_embeddings`` tokens, and of longer ones.
    "proportional": ``rotary_dim`` is the whole head; of its frequencies the first ``turned_dim // 2`` are as
    ever, the others zero, so that these dimensions stay as they are.
    """

    rotary_dim: int
    theta: float = 10_000.0
    type: str = "default"
    interleaved: bool = False
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    frequency_factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    turned_dim: int = 0

    def __post_init__(self) -> None:
        if self.type not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"rope type {shown(self.type)} is not supported",
                hint=f"Supported rope types: {', '.join(ROPE_TYPES)}.",
            )
        check_count("rotary_dim", self.rotary_dim, MAX_WIDTH)
        if self.rotary_dim % 2:
            raise CheckpointError(f"{self.rotary_dim} rotated dimensions of a head are not an even number")
        if not 0 <= self.turned_dim <= self.rotary_dim or self.turned_dim % 2:
            raise CheckpointError(f"{self.turned_dim} turned dimensions of {self.rotary_dim} in a head")
        check_between("rope theta", self.theta, THETAS)
        check_count(
            "rope original_max_position_embeddings", self.original_max_position_embeddings, MAX_CONTEXT
        )
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            check_between(f"rope {name}", getattr(self, name), SCALES)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= SCALES[1]:
                raise CheckpointError(f"rope {name} is {value}, expected a number from 0 to {SCALES[1]:g}")
        if self.type == "llama3" and not self.high_freq_factor >= self.low_freq_factor:
            raise CheckpointError(
                f"rope high_freq_factor {self.high_freq_factor} is below low_freq_factor "
                f"{self.low_freq_factor}"
            )
        for name in ("frequency_factors", "short_factors", "long_factors"):
            self._check_factors(name, getattr(self, name))

    def _check_factors(self, name: str, factors: tuple[float, ...]) -> None:
        needed = self.type == "longrope" and name != "frequency_factors"
        if len(factors) != self.rotary_dim // 2 and (factors or needed):
            raise CheckpointError(f"{len(factors)} rope {name}, expected {self.rotary_dim // 2}")
        for value in factors:
            check_between(f"a number of rope {name}", value, SCALES)


def lengthened(positions: int, rope: RopeConfig) -> int:
    """Tokens of the longest sequence: ``positions`` of the file, or what rope scaling makes of the positions
    that the model was trained on, where that is more.

    Many files keep the trained length beside a factor, as transformers documents it; others have multiplied
    it already. Files with llama3 scaling always have, by less than their factor. What dynamic scaling makes
    of a token beyond the trained length depends on the tokens that are computed with it. But a swarm cuts a
    text as it likes, and computes parts of it again: so there the context ends.
    """
    if rope.type not in ("linear", "yarn"):
        return positions
    return max(positions, int(min(MAX_CONTEXT, rope.original_max_position_embeddings * rope.factor)))
