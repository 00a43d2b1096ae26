"""What a model is, in one frozen type that both checkpoint formats fill in.

All numbers are checked here, so that all code may trust a ``ModelConfig``: sizes are positive and bounded,
head counts divide, the rope settings are complete for their type.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ...swarm.types import MAX_BLOCKS
from .shown import shown

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
MAX_WIDTH = 1 << 20
"""No layer may be wider. It is more than any in use, and bounds what a damaged file can make us allocate."""
MAX_VOCAB = 1 << 22
MAX_CONTEXT = 1 << 26
THETAS = (1.0, 1e30)
"""The base of rotary frequencies lies between these, both excluded: it must be a float32 number."""
SCALES = (1e-6, 1e6)
"""The same for factors of rotary frequencies and the like."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position settings, under HuggingFace's names (``rope_parameters`` of config.json).

    ``original_max_position_embeddings`` is always filled in (the model's maximum where the file has none).
    ``attention_factor``, ``mscale`` and ``mscale_all_dim`` are None where the file leaves them to the
    formula; a GGUF file may give a factor for any type. ``frequency_factors``: one divisor per inverse
    frequency, ``rotary_dim // 2`` of them, or empty: GGUF files of llama3-scaled models carry these
    (``rope_freqs.weight``) and not the formula's inputs.
    """

    theta: float = 10_000.0
    type: str = "default"
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

    def __post_init__(self) -> None:
        if self.type not in ROPE_TYPES:
            raise UnsupportedModelError(
                f"rope type {shown(self.type)} is not supported",
                hint=f"Supported rope types: {', '.join(ROPE_TYPES)}.",
            )
        _between("rope theta", self.theta, THETAS)
        _positive("rope original_max_position_embeddings", self.original_max_position_embeddings, MAX_CONTEXT)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            _between(f"rope {name}", getattr(self, name), SCALES)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= SCALES[1]:
                raise CheckpointError(f"rope {name} is {value}, expected a number from 0 to {SCALES[1]:g}")
        if self.type == "llama3" and not self.high_freq_factor > self.low_freq_factor:
            raise CheckpointError(
                f"rope high_freq_factor {self.high_freq_factor} is not above low_freq_factor "
                f"{self.low_freq_factor}"
            )
        for value in self.frequency_factors:
            _between("a rope frequency factor", value, SCALES)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A Llama-architecture model.

    ``attention_bias`` / ``mlp_bias``: the file has ``.bias`` tensors beside those weights (ask
    ``Checkpoint.has`` for each: GGUF files may have them for q, k and v only).
    ``max_position_embeddings``: tokens of the longest sequence, rope scaling counted (``lengthened``).
    ``native_dtype``: the file's main weight type, such as ``BF16`` or ``Q4_1``; for people and for ``auto``.
    """

    family: str
    n_blocks: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    native_dtype: str = "F32"

    def __post_init__(self) -> None:
        if self.family != "llama":
            raise unsupported_family(self.family)
        _positive("number of blocks", self.n_blocks, MAX_BLOCKS)
        for name in ("hidden_size", "n_heads", "n_kv_heads", "head_dim", "intermediate_size"):
            _positive(name, getattr(self, name), MAX_WIDTH)
        _positive("vocab_size", self.vocab_size, MAX_VOCAB)
        _positive("max_position_embeddings", self.max_position_embeddings, MAX_CONTEXT)
        _between("rms_norm_eps", self.rms_norm_eps, (0.0, SCALES[1]))
        if self.n_heads % self.n_kv_heads:
            raise CheckpointError(
                f"{self.n_heads} attention heads cannot be shared by {self.n_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim {self.head_dim} is odd; rotary embedding needs an even one")
        factors = len(self.rope.frequency_factors)
        if factors not in (0, self.rotary_dim // 2):
            raise CheckpointError(f"{factors} rope frequency factors, expected {self.rotary_dim // 2}")
        for token in (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,))):
            if not 0 <= token < MAX_VOCAB:
                raise CheckpointError(f"special token id {shown(token)} is outside 0..{MAX_VOCAB - 1}")

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of a head: all of them in every family supported so far."""
        return self.head_dim

    @property
    def q_size(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.n_kv_heads * self.head_dim


def unsupported_family(family: object) -> UnsupportedModelError:
    """``family``: the value in the file, of any type."""
    return UnsupportedModelError(
        f"model family {shown(family)} is not supported",
        hint="Supported: Llama-architecture models (LlamaForCausalLM; Mistral without sliding window).",
    )


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


def _positive(name: str, value: int, largest: int) -> None:
    if not 0 < value <= largest:
        raise CheckpointError(f"{name} is {shown(value)}, expected a positive number up to {largest}")


def _between(name: str, value: float, bounds: tuple[float, float]) -> None:
    if not bounds[0] < value < bounds[1]:
        raise CheckpointError(
            f"{name} is {shown(value)}, expected a number above {bounds[0]:g} and below {bounds[1]:g}"
        )
