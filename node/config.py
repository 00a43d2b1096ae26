"""What a person may set about a node, checked once, and what a node tells its starter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..shards.models.devices import without_mlx
from ..swarm.errors import UsageError
from ..swarm.membership.membership import Membership
from ..swarm.transport.addresses import EVERY_INTERFACE
from ..swarm.transport.direct_maddrs import DirectOptions
from ..swarm.transport.limited import UNLIMITED, Bandwidth
from ..swarm.types import MAX_NODE_NAME, Span
from .engine.batching.scheduler import DECODE_TOKENS

if TYPE_CHECKING:
    from ..shards.formats.config import ModelConfig

KERNELS = ("auto", "native", "fast", "torch")
KV_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
MIN_MAX_FRAME = 64 * 1024
"""Bytes of a frame that a node must accept at least. With less it could not pass one token of a wide model in
float32."""


MAX_BATCH_TOKENS = 512
"""Rows that a node computes together at most, unless it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """How a node is in its swarm. ``identity``: None makes a new identity that is forgotten at the end.
    ``port``: 0 takes a free one. ``membership``: of the swarm to be in, None for the unnamed one.
    ``may_meet``: addresses of peers to join through that need not answer, as ``initial_peers`` must.
    ``mdns``: find peers on this LAN, and be found. ``name``: what people call the node.
    """

    identity: Path | None = None
    host: str = EVERY_INTERFACE
    port: int = 0
    announce_maddrs: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    may_meet: tuple[str, ...] = ()
    membership: Membership | None = None
    mdns: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NODE_NAME or not self.name.isprintable():
            raise UsageError(
                f"a node's name has at most {MAX_NODE_NAME} printable characters",
                hint="Give a shorter one, such as --name kitchen.",
            )
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is not between 0 and 65535")

    def network_options(self) -> dict[str, Any]:
        """What ``open_network`` takes of it beside the identity."""
        names = ("host", "port", "announce_maddrs", "initial_peers", "may_meet", "membership", "mdns")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class NodeConfig(NetworkConfig):
    """How one node serves. Raises UsageError naming the option that is wrong.

    ``model`` may be "" if ``models`` are given: those that an idle node loads when a client asks for them,
    ``any`` for every model that it can get. ``blocks``: None serves every block of the model, or with
    ``auto`` those that help most, which may change. ``memory``: bytes that weights and KV cache may take,
    ``kv_cache_tokens``: of the cache; None measures. ``kv_dtype``: how keys and values are held; auto is
    float32 where ``dtype`` is, else 16 bits. ``look_seconds``: between looks at the directory, where the node
    chooses its blocks itself. ``prefill_target_ms``: what a slice of a prompt may add to a batch that others'
    decode steps are in. ``max_kv_share_per_peer``: the part of the cache that one peer may hold even while
    nobody else wants any. ``journal_mib``: memory for what sessions sent on, to feed a replacement of the
    next hop; 0 keeps none. ``deterministic``: compute each token to the same bits in any batch and any chunk,
    or refuse to start. ``threads``: None takes the real cores this process may use. ``pure_python``: a light
    node, without p2pd and the DHT. ``direct``: how others reach this process itself, beside its p2pd; None:
    only through p2pd. ``auto_device``: ``device`` is what suits the machine, not what somebody asked for.
    ``relays``: peers through which others reach this node, where they cannot dial it. ``bandwidth``: what all
    its streams together may take of the line.
    Times are seconds where the name does not say otherwise, ``max_frame`` is bytes."""

    model: str
    models: tuple[str, ...] = ()
    blocks: Span | None = None
    auto: bool = False
    memory: int | None = None
    pure_python: bool = False
    direct: DirectOptions | None = field(default_factory=DirectOptions)
    relays: tuple[str, ...] = ()
    bandwidth: Bandwidth = UNLIMITED
    device: str = "cpu"
    auto_device: bool = False
    dtype: str = "auto"
    quantize: str = "auto"
    threads: int | None = None
    kernels: str = "auto"
    deterministic: bool = False
    kv_cache_tokens: int | None = None
    kv_dtype: str = "auto"
    prefix_cache: bool = True
    journal_mib: int = 256
    prefill_target_ms: float = 25.0
    max_step_tokens: int = 512
    max_batch_tokens: int = MAX_BATCH_TOKENS
    max_sessions: int = 256
    max_sessions_per_peer: int = 64
    max_connections_per_peer: int = 32
    max_kv_share_per_peer: float = 1.0
    max_frame: int | None = None
    drain_seconds: float = 30.0
    idle_session_seconds: float = 600.0
    idle_connection_seconds: float = 120.0
    announce_seconds: float = 20.0
    look_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.model and not self.models:
            raise UsageError(
                "no model given",
                hint="Pass --model with a path or a name, or --models any to serve on demand.",
            )
        if self.models and not self.auto:
            raise UsageError(
                "only a node that chooses its blocks itself can take up models that are asked for",
                hint="Leave --blocks out, or --models.",
            )
        NetworkConfig.__post_init__(self)
        for name in (
            "max_step_tokens",
            "max_batch_tokens",
            "max_sessions",
            "max_sessions_per_peer",
            "max_connections_per_peer",
        ):
            _require_positive(name, getattr(self, name))
        if self.auto and self.blocks is not None:
            raise UsageError(f"blocks {self.blocks} and blocks chosen by the node itself exclude each other")
        for name in ("threads", "kv_cache_tokens", "memory"):
            if (value := getattr(self, name)) is not None:
                _require_positive(name, value)
        for name in (
            "prefill_target_ms",
            "idle_session_seconds",
            "idle_connection_seconds",
            "announce_seconds",
            "look_seconds",
        ):
            _require_positive(name, getattr(self, name))
        if self.max_batch_tokens <= DECODE_TOKENS:
            raise UsageError(f"max_batch_tokens {self.max_batch_tokens} is not above {DECODE_TOKENS}")
        _require_choice("kernels", self.kernels, KERNELS)
        _require_choice("kv_dtype", self.kv_dtype, KV_DTYPES)
        if not 0 < self.max_kv_share_per_peer <= 1:
            raise UsageError(
                f"max_kv_share_per_peer {self.max_kv_share_per_peer} is not above 0 and at most 1",
                hint="It is a part of the cache: 0.5 is half of it.",
            )
        for name in ("drain_seconds", "journal_mib"):
            if (value := getattr(self, name)) < 0:
                raise UsageError(f"{name} {value} is negative")
        if self.max_frame is not None and self.max_frame < MIN_MAX_FRAME:
            raise UsageError(f"max_frame {self.max_frame} is below {MIN_MAX_FRAME} bytes")

    def for_model(self, model: ModelConfig) -> NodeConfig:
        """With another device where ``model`` runs by transformers' own layers and MLX was not asked for."""
        cannot = model.foreign is not None and self.device == "mlx" and self.auto_device
        return replace(self, device=without_mlx()) if cannot else self


@dataclass(frozen=True, slots=True)
class BootstrapConfig(NetworkConfig):
    """How a bootstrap node listens: a meeting point for the DHT that serves no blocks. ``relay``: it passes
    on connections to peers that cannot be dialled, too."""

    relay: bool = False


EventName = Literal[
    "metrics",
    "listening",
    "model_choice",
    "compiling",
    "peer_found",
    "waiting",
    "fetched",
    "sharing",
    "not_sharing",
    "weights_damaged",
    "tokenizer_unreadable",
    "coarse_codecs",
    "wanted",
    "wish_failed",
    "measured",
    "planned",
    "resting",
    "rested",
    "standing_by",
    "moving",
    "staying",
    "memory_short",
    "loading",
    "dashboard",
    "online",
    "network_lost",
    "network_restored",
    "unseen",
    "seen",
    "copied",
    "draining",
    "stopped",
    "events_lost",
    "error",
]
"""All events of a node, as docs/reference/cli.md describes them. There is no node for ``resting`` and
``rested``, and none tells ``events_lost``: the command does."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One thing that happened. ``details`` depends on the event: measured speeds for ``online``, ``message``
    and ``hint`` for ``error``."""

    event: EventName
    peer_id: str = ""
    maddrs: tuple[str, ...] = ()
    model: str = ""
    blocks: str = ""
    details: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """One flat JSON object; its keys are a stable part of the command line."""
        return {
            "event": self.event,
            "peer_id": self.peer_id,
            "maddrs": list(self.maddrs),
            "model": self.model,
            "blocks": self.blocks,
            **self.details,
        }


OnEvent = Callable[[NodeEvent], None]
"""Called in the event loop; must not block."""


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} {value} must be more than 0")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is not one of {', '.join(choices)}")
