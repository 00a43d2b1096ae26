"""The weights of a Llama block: which tensors of the file become which of its parts, for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from ..formats.tensors import block_tensors

if TYPE_CHECKING:
    from ...swarm.types import Span
    from ..checkpoint.checkpoint import Checkpoint
    from ..formats.config import ModelConfig

Norm = TypeVar("Norm", covariant=True)
Linear = TypeVar("Linear", covariant=True)


class BlockLoader(Protocol[Norm, Linear]):
    """A backend's ``TensorReader``."""

    label: str

    def norm(self, name: str) -> Norm: ...

    def linear(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> Linear: ...


class BlockWeights(NamedTuple, Generic[Norm, Linear]):
    """RMSNorm, rotary grouped-query attention, SwiGLU, with q, k, v and gate, up as one product each."""

    norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


class Stack(NamedTuple):
    """Matrices that are stacked: their names without ``.weight``, the rows of each, and their columns."""

    names: list[str]
    sizes: list[int]
    cols: int


def block_stacks(config: ModelConfig, block: int) -> tuple[Stack, Stack, Stack, Stack]:
    """qkv, out, gate_up and down of block number ``block``."""
    attention, mlp = f"model.layers.{block}.self_attn", f"model.layers.{block}.mlp"
    hidden, q, kv, inner = config.hidden_size, config.q_size, config.kv_size, config.intermediate_size
    return (
        Stack([f"{attention}.{part}_proj" for part in "qkv"], [q, kv, kv], hidden),
        Stack([f"{attention}.o_proj"], [hidden], q),
        Stack([f"{mlp}.gate_proj", f"{mlp}.up_proj"], [inner, inner], hidden),
        Stack([f"{mlp}.down_proj"], [hidden], inner),
    )


def load_block(
    loader: BlockLoader[Norm, Linear], config: ModelConfig, block: int
) -> BlockWeights[Norm, Linear]:
    """Block number ``block`` of the model."""
    loader.label = f"block {block}"
    qkv, out, gate_up, down = block_stacks(config, block)
    prefix = f"model.layers.{block}"
    return BlockWeights(
        norm=loader.norm(f"{prefix}.input_layernorm.weight"),
        qkv=loader.linear(*qkv),
        out=loader.linear(*out),
        mlp_norm=loader.norm(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=loader.linear(*gate_up),
        down=loader.linear(*down),
    )


def bytes_in_file(checkpoint: Checkpoint, span: Span) -> int:
    """Of the tensors of blocks ``span``."""
    blocks = range(span.start, span.end)
    names = (name for block in blocks for name in block_tensors(checkpoint.config, block))
    return sum(checkpoint.tensor(name).nbytes for name in names if checkpoint.has(name))
