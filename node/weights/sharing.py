"""What a node announces of its model's files, and their sharing: whole, or as they come.

A node that has a model whole announces the root of its files, also if it shares nothing: so a peer that
fetches from another hears more than one root. Nothing else on this machine can be asked for: what is shared
is on the shared models by its root.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...shards.checkpoint.local_models import weights_folder
from ...shards.pieces.cache import DEFAULT_CACHE_BYTES, PieceCache
from ...shards.pieces.file_hashes import HashingStopped, Progress
from ...shards.pieces.hashing import manifest_of, model_files
from ...shards.pieces.holder import PieceHolder, WholeFiles
from ...shards.pieces.store import PieceStore, is_store
from ...shards.transfer.messages import WEIGHTS_PROTOCOL
from ...shards.transfer.server import PieceServer, SharedModels
from ...shards.transfer.upload_limits import RateLimit
from ...swarm.errors import CheckpointError, ModelError, UsageError
from ...swarm.types import NodeInfo
from ..node import Node

logger = logging.getLogger(__name__)

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class WeightOptions:
    """``share``: None shares where every address of the node is a private one. ``bytes_per_s``: each way,
    None: no bound. ``cache_bytes``: of weights that peers sent."""

    share: bool | None = None
    bytes_per_s: float | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES

    def __post_init__(self) -> None:
        if self.cache_bytes < 1:
            raise UsageError(f"a cache of {self.cache_bytes} bytes holds nothing")
        RateLimit(self.bytes_per_s)

    def cache(self) -> PieceCache:
        return PieceCache(weights_folder(), self.cache_bytes)


class WeightService:
    """A ``serve.Service``. It serves ``shared_models``, to which a fetch adds what comes.

    ``add_files`` takes a model that is here whole, once it is hashed; ``announce`` tells of one that comes.
    """

    def __init__(self, options: WeightOptions, on_progress: Progress | None = None) -> None:
        self.options = options
        self.shared_models = SharedModels()
        self.fetched_bytes = 0
        """Of models' files, since the start."""
        self._server = PieceServer(self.shared_models, rate=RateLimit(options.bytes_per_s))
        self._on_progress = on_progress
        self._node: Node | None = None
        self._shares = False
        self._roots: dict[str, str] = {}  # by the model's digest
        self._files: dict[str, _ModelFiles] = {}  # by the model's digest

    @property
    def node(self) -> Node | None:
        """None before it is in its network."""
        return self._node

    @property
    def sent_bytes(self) -> int:
        """Of models' files, since the start."""
        return self._server.bytes_by_peer.total()

    @property
    def shares(self) -> bool:
        return self._shares

    @asynccontextmanager
    async def __call__(self, node: Node) -> AsyncIterator[None]:
        self._node = node
        given = self.options.share
        self._shares = given if given is not None else all_private(node.maddrs)
        if self._shares:
            await node.transport.serve(WEIGHTS_PROTOCOL, self._server.handle)
        node.amend.append(self._amended)
        for digest in self._files:
            self._begin(digest)
        try:
            yield
        finally:
            hashing = [files.hashing for files in self._files.values() if files.hashing is not None]
            for digest in list(self._files):
                self.forget(digest)
            await asyncio.gather(*hashing, return_exceptions=True)
            self._node = None

    def announce(self, digest: str, root: str) -> None:
        """Pieces of this root are here: the model's. "": of none."""
        if self._roots.get(digest, "") != root:
            self._roots[digest] = root
            if self._node is not None:
                self._node.announce_soon()

    def add_files(self, digest: str, path: Path) -> None:
        """Announce the files of a model on this machine, and serve them where this node shares, once it is in
        its network and they are hashed."""
        if digest not in self._files:
            self._files[digest] = _ModelFiles(path.expanduser())
            if self._node is not None:
                self._begin(digest)

    def forget(self, digest: str) -> None:
        """The model is not this node's any more."""
        self._roots.pop(digest, None)
        if (files := self._files.pop(digest, None)) is not None:
            files.stop.set()  # what is being hashed is closed when that has stopped
            if (holder := files.holder) is not None and self.shared_models.get(
                holder.manifest.root
            ) is holder:
                self.shared_models.remove(holder.manifest.root)
            if files.hashing is None or files.hashing.done():
                files.close()

    def _begin(self, digest: str) -> None:
        files = self._files[digest]
        if files.hashing is None:
            files.hashing = asyncio.create_task(self._add(digest, files), name="weights-hashing")

    async def _add(self, digest: str, files: _ModelFiles) -> None:
        try:
            on_change = partial(self._changed, asyncio.get_running_loop(), digest, files)
            holder = await asyncio.to_thread(files.open, self._on_progress, on_change)
            if (found := holder.manifest.identity.digest) != digest:
                raise CheckpointError(
                    f"{files.path} is another model than the one that was opened: {found[:12]}",
                    hint="Start again when it is written.",
                )
        except HashingStopped:
            return
        except ModelError as error:
            logger.warning("event=weights_not_shared path=%s error=%r", files.path, error.message)
            if self._node is not None and self._shares:
                self._node.emit("not_sharing", message=error.message)
            return
        if files.stop.is_set():
            files.close()
            return
        root = holder.manifest.root
        if self._shares:
            self.shared_models.put(holder)
        self.announce(digest, root)
        if self._node is not None and self._shares:
            self._node.emit("sharing", root=root, bytes=holder.manifest.total_bytes)

    def _changed(
        self, loop: asyncio.AbstractEventLoop, digest: str, files: _ModelFiles, error: CheckpointError
    ) -> None:
        """From any thread: a file is not what was hashed. What was loaded of it stays as it is."""

        def stop_sharing() -> None:
            if self._files.get(digest) is files:
                self.forget(digest)
                if self._node is not None:
                    self._node.emit("not_sharing", message=error.message)
                    self._node.announce_soon()

        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it what it shared
            loop.call_soon_threadsafe(stop_sharing)

    def _amended(self, info: NodeInfo) -> NodeInfo:
        digest = info.model.digest
        if not (root := self._roots.get(digest, "")):
            return info
        files = self._files.get(digest)
        whole = files is not None and isinstance(files.holder, WholeFiles)
        return replace(info, weights_root=root, weights_whole=whole, shares_weights=self._shares)


class _ModelFiles:
    """A model that is here whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hashing: asyncio.Task[None] | None = None
        self.holder: WholeFiles | PieceStore | None = None
        self.stop = threading.Event()

    def open(self, on_progress: Progress | None, on_change: Callable[[CheckpointError], None]) -> PieceHolder:
        """Blocks for as long as hashing takes. Raises HashingStopped, CheckpointError."""
        if is_store(self.path):
            self.holder = PieceStore(self.path)
        else:
            manifest = manifest_of(self.path, progress=on_progress, stop=self.stop)
            self.holder = WholeFiles(manifest, model_files(self.path), on_change)
        return self.holder

    def close(self) -> None:
        if isinstance(self.holder, PieceStore):
            self.holder.close()


def all_private(maddrs: Sequence[str]) -> bool:
    """Whether every one of these addresses is of a private network, or of this machine.

    Beside a private IPv4 address a public one of IPv6 counts as private: the same router is before both, and
    lets no connection in by itself (RFC 6092).
    """
    addresses = [_ip_of(maddr) for maddr in maddrs]
    behind = any(each is not None and each.version == 4 and _is_lan(each) for each in addresses)

    def fits(maddr: str, address: _Ip | None) -> bool:
        if address is None:
            return maddr.startswith("/memory/")
        return address.is_private or (behind and address.version == 6)

    return bool(maddrs) and all(map(fits, maddrs, addresses))


def _is_lan(address: _Ip) -> bool:
    return address.is_private and not address.is_loopback


def _ip_of(maddr: str) -> _Ip | None:
    """None of other addresses, such as one through a relay."""
    parts = maddr.split("/")
    try:
        return (
            None
            if "p2p-circuit" in parts or parts[1] not in ("ip4", "ip6")
            else ipaddress.ip_address(parts[2])
        )
    except (ValueError, IndexError):
        return None
