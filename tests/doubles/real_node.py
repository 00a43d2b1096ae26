"""A real node and a real client in this process, over in-memory transports."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.drafting.next_guesses import load_next_model
from swarm_node.client.local_model import LocalModel
from swarm_node.client.network import ClientNetwork
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.engine import self_bench
from swarm_node.node.node import Node
from swarm_node.shards.certificates.reading import row_reader
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import ToyTokenizer

MEASURED_RUNS = 5
"""Of each kind, when a node measures itself: of a small model all 64 fit into the time, as long as an answer
takes."""


async def start_node(
    model: Path,
    peer: str,
    span: Span,
    *,
    kv_tokens: int,
    memory: MemoryNetwork,
    store: MemoryStore,
    exit: AsyncExitStack,
    device: str = "cpu",
    batch_tokens: int = 512,
    step_tokens: int = 16,
) -> Node:
    """In float32; ``exit`` stops it."""
    config = NodeConfig(
        model=str(model),
        blocks=span,
        device=device,
        dtype="float32",
        quantize="none",
        threads=1,
        kv_cache_tokens=kv_tokens,
        max_step_tokens=step_tokens,
        max_batch_tokens=batch_tokens,
    )
    node = Node(config, lambda _: None, network=GivenNetwork(memory.transport(peer), MemoryDirectory(store)))
    exit.push_async_callback(node.stop)
    with mock.patch.object(self_bench, "MAX_RUNS", MEASURED_RUNS):
        await node.start()
    return node


def real_client(model: Path, memory: MemoryNetwork, store: MemoryStore, **options: Any) -> AsyncSwarmModel:
    """In float32, with a toy tokenizer, and the model's own block for guesses; the caller closes it."""
    checkpoint = open_checkpoint(str(model))
    config = checkpoint.config
    held = LoadOptions(dtype="float32", quantize="none")
    head = load_client_model(checkpoint, held)
    guesser = load_next_model(checkpoint, head, held)

    def close() -> None:
        if guesser is not None:
            guesser.close()
        checkpoint.close()

    local = LocalModel(
        checkpoint.ref,
        config.boundaries,
        config.vocab_size,
        config.max_position_embeddings,
        head,
        ToyTokenizer(),
        close,
        draft=guesser,
        reader=row_reader(checkpoint, None, config.n_blocks),
        keeps_states=config.keeps_states,
    )
    network = ClientNetwork(GivenNetwork(memory.transport("client"), MemoryDirectory(store)))
    return AsyncSwarmModel(local, network, **{"wire_codec": "none", **options})
