"""A codec of each kind, and rows like the real ones."""

from __future__ import annotations

import numpy as np

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import codec_named
from swarm_node.swarm.codecs.scales import ScaleTable


def codec_of(kind: str, width: int, seed: int = 1, most: int = 1) -> Codec:
    """int8s with a table of its own for each ``seed``, with exponents up to ``most``."""
    return Int8sCodec.of(table_of(width, seed, most)) if kind == "int8s" else codec_named(kind, width)


def table_of(width: int, seed: int = 1, most: int = 1) -> ScaleTable:
    return ScaleTable(np.random.default_rng(seed).integers(-most, most + 1, width, np.int8).tobytes())


def activations(tokens: int, width: int, seed: int = 0) -> np.ndarray:
    """A few channels far above the rest, and a first token with massive values."""
    x = np.random.default_rng(seed).standard_normal((tokens, width), np.float32)
    x[:, width // 2] *= 300
    x[:1, width // 3] = 20000.0
    return x
