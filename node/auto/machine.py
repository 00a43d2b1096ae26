"""What this machine could do for a model, measured before any of its weights are here.

A few made-up blocks of the model's shape, held as its weights would be, on the device that will serve: enough
of them that they do not all stay in the processor's cache, which a whole span does not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...shards.formats.config import ModelConfig
from ...shards.formats.tensors import TensorInfo, block_tensors
from ...shards.layers.kv_pool import largest_slot
from ...shards.loading import load_backend
from ...shards.models.random_blocks import random_checkpoint
from ...swarm.codecs import activations
from ...swarm.placement.types import ModelShape, NodeOffer, gigabytes
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import PeerLink, Span
from ..config import NodeConfig
from ..engine.self_bench import PREFILL_TOKENS, measure_self
from ..loaded_span import is_memory_error, kv_dtype_of, load_options
from ..resources import MemoryShortError, give_memory_back, usable_memory

CACHE_BYTES = 32 * 1024 * 1024
"""Weights measured together, at least: more than most last-level caches have for one process."""
MOST_BLOCKS = 8
"""Measured together at most: of models whose blocks are small enough that more would take long to make."""


@dataclass(frozen=True, slots=True)
class MeasuredMachine:
    """``shape``: what the model costs here. ``memory_bytes``: usable for weights and KV cache.
    ``decode_ms_per_block``: one token, batch 1. ``prefill_tokens_per_s``: through one block. ``weights``,
    ``kernels`` and ``kv_dtype``: how they would be held and computed, for people."""

    shape: ModelShape
    memory_bytes: int
    decode_ms_per_block: float
    prefill_tokens_per_s: float
    weights: str
    kernels: str
    kv_dtype: str

    def max_blocks(self) -> int:
        return self.shape.max_blocks(self.memory_bytes)

    def why_no_block(self) -> str:
        """For people, where ``max_blocks`` is 0."""
        shape = self.shape
        return (
            f"one block takes {gigabytes(shape.room_per_block)} with {shape.context_tokens} tokens of KV "
            f"cache, and {gigabytes(self.memory_bytes)} are usable here; a smaller --kv-cache-tokens helps"
        )

    def offer(self, peer_id: str, links: tuple[PeerLink, ...] = ()) -> NodeOffer:
        return NodeOffer(
            peer_id=peer_id,
            memory_bytes=self.memory_bytes,
            decode_ms_per_block=self.decode_ms_per_block,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            links=links,
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "memory_bytes": self.memory_bytes,
            "max_blocks": self.max_blocks(),
            "block_bytes": self.shape.block_bytes,
            "kv_bytes_per_block": self.shape.kv_bytes * self.shape.context_tokens,
            "context_tokens": self.shape.context_tokens,
            "decode_ms_per_block": round(self.decode_ms_per_block, 4),
            "prefill_tokens_per_s_per_block": round(self.prefill_tokens_per_s, 1),
            "weights": self.weights,
            "kernels": self.kernels,
            "kv_dtype": self.kv_dtype,
        }


def measure_machine(
    config: NodeConfig, model: ModelConfig, manifest: Mapping[str, TensorInfo], threads: int
) -> MeasuredMachine:
    """Takes a second or two; call it in a thread of its own, and leave the processor alone meanwhile.

    Raises UsageError for a device that is not there, MemoryShortError where not even one block fits.
    """
    memory = usable_memory(config.device, config.memory)
    file_bytes = max(1, sum(manifest[name].nbytes for name in block_tensors(model, 0) if name in manifest))
    count = min(model.n_blocks, MOST_BLOCKS, max(1, min(-(-CACHE_BYTES // file_bytes), memory // file_bytes)))
    try:
        with random_checkpoint(model, manifest, [0] * count) as made:
            blocks = load_backend(made, Span(0, count), load_options(config), threads=threads)
            kv_dtype = kv_dtype_of(config, blocks)
            longest = min(model.max_position_embeddings, config.kv_cache_tokens or PREFILL_TOKENS + 1)
            measured = measure_self(blocks, kv_dtype, longest)
            weights, kernels, weight_bytes = blocks.weights, blocks.kernels, blocks.weight_bytes
            del blocks
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise MemoryShortError(
            f"not even one block of the model fits into the memory of {config.device}",
            hint="Close other programs, or choose --quantize int4.",
        ) from error
    give_memory_back(config.device)
    shape = ModelShape(
        n_blocks=model.n_blocks,
        block_bytes=-(-weight_bytes // count),
        kv_bytes=largest_slot(model.blocks, kv_dtype) // PAGE_TOKENS,
        context_tokens=config.kv_cache_tokens or model.max_position_embeddings,
        activation_bytes=activations.payload_bytes("int8", 1, model.hidden_size),
    )
    return MeasuredMachine(
        shape=shape,
        memory_bytes=memory,
        decode_ms_per_block=measured.decode_ms_per_block,
        prefill_tokens_per_s=measured.prefill_tokens_per_s * count,
        weights=weights,
        kernels=kernels,
        kv_dtype=kv_dtype,
    )
