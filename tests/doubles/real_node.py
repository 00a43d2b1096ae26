"""A real node in this process, over in-memory transports."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.node import Node
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span


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
) -> Node:
    """In float32, with steps of 16 tokens; ``exit`` stops it."""
    config = NodeConfig(
        model=str(model),
        blocks=span,
        device=device,
        dtype="float32",
        quantize="none",
        threads=1,
        kv_cache_tokens=kv_tokens,
        max_step_tokens=16,
        max_batch_tokens=batch_tokens,
    )
    node = Node(config, lambda _: None, network=GivenNetwork(memory.transport(peer), MemoryDirectory(store)))
    exit.push_async_callback(node.stop)
    await node.start()
    return node
