"""What this machine would do in a swarm, found out before anything is loaded or announced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ...dht.directory import Directory
from ...dht.joining.client import joined_if_any
from ...dht.joining.network import Network
from ...shards.catalogue.catalogue import CatalogueFiles, find_in_catalogue
from ...shards.checkpoint.local_models import weights_folder
from ...shards.checkpoint.lookup import Source, resolve_model
from ...shards.checkpoint.opening import open_checkpoint
from ...shards.formats.config import ModelConfig
from ...shards.formats.tensors import TensorInfo
from ...shards.pieces.cache import DEFAULT_CACHE_BYTES, PieceCache
from ...shards.pieces.file_hashes import Progress, hashing_watched
from ...shards.transfer.fetch import ModelFetch
from ...swarm.membership.entry import SwarmEntry
from ...swarm.naming.witnesses import Witnesses
from ...swarm.placement.planner import plan_join
from ...swarm.placement.types import Verdict
from ...swarm.routing.best_route import missing_blocks
from ...swarm.runtime.cores import default_threads
from ...swarm.types import ModelRef, NodeInfo, NodeState, Span
from ..config import NodeConfig
from ..loaded_span import compile_kernels
from ..presence.roll_call import RollCall, call_roll
from .carrying import Alike, OtherMachine, alike, others
from .machine import MeasuredMachine, measure_machine

OnStage = Callable[[str], None]
"""Told in a few words what is going on."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """``nodes``: those that serve the model, or are about to, and answer. ``silent``: those that claim to
    and give no answer here. ``swarm_found``: whether there is a swarm. ``files``: what the catalogue says of
    a model that is not here. ``alike``: machines like this one that carry it; None where no block fits.
    ``others``: all other nodes of the swarm, and what they could hold."""

    model: ModelRef
    machine: MeasuredMachine
    nodes: tuple[NodeInfo, ...]
    swarm_found: bool
    verdict: Verdict
    silent: tuple[NodeInfo, ...] = ()
    files: CatalogueFiles | None = None
    alike: Alike | None = None
    others: tuple[OtherMachine, ...] = ()

    @property
    def missing(self) -> tuple[Span, ...]:
        """The blocks that no node serves now."""
        return missing_blocks(self._online, self.model.n_blocks, cuts=self.machine.shape.cuts)

    def missing_with(self, span: Span) -> tuple[Span, ...]:
        """The blocks that no node would serve if ``span`` were served here."""
        here = NodeInfo("", (), self.model, span, NodeState.ONLINE)
        return missing_blocks([*self._online, here], self.model.n_blocks, cuts=self.machine.shape.cuts)

    @property
    def known_room(self) -> int:
        """Blocks that this machine and the others could hold together, as far as that is known."""
        shape = self.machine.lean or self.machine.shape
        here = shape.max_blocks(self.machine.memory_bytes)
        return here + sum(each.blocks or 0 for each in self.others)

    @property
    def _online(self) -> list[NodeInfo]:
        return [node for node in self.nodes if node.state is NodeState.ONLINE]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.model.name,
            "digest": self.model.digest,
            "n_blocks": self.model.n_blocks,
            "swarm_found": self.swarm_found,
            "nodes": len(self.nodes),
            "silent": [node.peer_id for node in self.silent],
            "missing": [str(span) for span in self.missing],
            "machine": self.machine.as_dict(),
            "files": None
            if self.files is None
            else {"hub_name": self.files.hub_name, "bytes": self.files.nbytes},
            "machines_like_this": None if self.alike is None else len(self.alike.spans),
            "tokens_per_s_like_this": None if self.alike is None else round(1 / self.alike.token_s, 3),
            "known_room": self.known_room,
            "others": [each.as_dict() for each in self.others],
            **self.verdict.as_dict(),
        }


async def look_ahead(
    entry: SwarmEntry,
    config: NodeConfig,
    *,
    on_stage: OnStage = lambda stage: None,
    on_progress: Progress | None = None,
) -> Outlook:
    """What ``swarm-node serve`` with ``config`` would choose now. Raises SwarmError.

    Without addresses or an invite, a swarm that is not found counts as one that this machine would begin.
    """
    on_stage("Looking for the swarm ...")
    async with joined_if_any(entry, on_stage) as network:
        async with _described(config.model, network, on_stage, on_progress) as described:
            ref, model, manifest = described.ref, described.config, described.manifest
            on_stage("Measuring this machine ...")
            if config.kernels != "torch":
                await asyncio.to_thread(
                    compile_kernels, config.device, lambda: on_stage("Compiling kernels (once) ...")
                )
            machine = await asyncio.to_thread(
                measure_machine, config, model, manifest, config.threads or default_threads()
            )
        own, found, everybody = "this machine", RollCall(), list[NodeInfo]()
        if network is not None:
            on_stage("Asking the swarm who serves what ...")
            own = network.transport.peer_id
            everybody = await network.directory.all_nodes()
            if ref.digest:
                found = await call_roll(network.transport, ref, await network.directory.nodes(ref))
    plan = partial(plan_join, found.living, machine.offer(own, found.links))
    verdict, _ = await asyncio.to_thread(machine.choose, plan)
    return Outlook(
        ref,
        machine,
        found.living,
        network is not None,
        verdict,
        found.silent,
        described.files,
        await asyncio.to_thread(alike, machine),
        others((node for node in everybody if node.peer_id != own), ref, machine.shape),
    )


async def is_served(entry: SwarmEntry, name: str, *, on_stage: OnStage = lambda stage: None) -> bool | None:
    """Whether nodes that answer serve every block of a model; None where no swarm is found, and none was
    named. Raises SwarmError."""
    async with joined_if_any(entry, on_stage) as network:
        if network is None:
            return None
        directory = network.directory
        place = await resolve_model(name, directory, witnesses=Witnesses(network.transport))
        ref = place.ref
        if ref is None and place.source is Source.LOCAL:
            ref = await asyncio.to_thread(_ref_at, place.path)
        if ref is None:  # the hub's: nobody here serves one of that name
            return False
        on_stage("Asking the swarm who serves what ...")
        found = await call_roll(network.transport, ref, await directory.nodes(ref))
        online = [node for node in found.living if node.state is NodeState.ONLINE]
        return not missing_blocks(online, ref.n_blocks)


def _ref_at(path: str) -> ModelRef:
    with hashing_watched(), open_checkpoint(path) as checkpoint:
        return checkpoint.ref


@dataclass(frozen=True, slots=True)
class _Described:
    """A model without its weights. ``ref`` has no digest where only the catalogue knows it: ``files``."""

    ref: ModelRef
    config: ModelConfig
    manifest: Mapping[str, TensorInfo]
    files: CatalogueFiles | None = None


@asynccontextmanager
async def _described(
    name: str, network: Network | None, on_stage: OnStage, on_progress: Progress | None
) -> AsyncIterator[_Described]:
    """What is known of the model before anything of it is fetched. The hub is asked for what neither this
    machine, nor the swarm, nor the catalogue knows."""
    directory: Directory | None = None if network is None else network.directory
    witnesses = None if network is None else Witnesses(network.transport)
    with hashing_watched(on_progress):
        place = await resolve_model(name, directory, witnesses=witnesses)
    if place.decision is not None:
        on_stage(place.decision.sentence)
    if place.source is Source.SWARM and place.ref is not None and network is not None:
        on_stage("Asking peers what the model is like ...")
        async with ModelFetch(
            place.ref,
            nodes=partial(network.directory.nodes_of, place.refs),
            transport=network.transport,
            cache=PieceCache(weights_folder(), DEFAULT_CACHE_BYTES),
            root=place.root,
            on_progress=on_progress,
        ) as fetch:
            path = await fetch.fetch(None, client=False)
            checkpoint = await asyncio.to_thread(open_checkpoint, str(path))
            with checkpoint:
                yield _Described(checkpoint.ref, checkpoint.config, checkpoint.manifest)
        return
    if place.source is Source.HUB and (files := find_in_catalogue(place.path)) is not None:
        manifest = await asyncio.to_thread(files.manifest)
        yield _Described(ModelRef(place.path, "", files.config.n_blocks), files.config, manifest, files)
        return
    with hashing_watched():
        checkpoint = await asyncio.to_thread(open_checkpoint, place.path, weights=False, progress=on_progress)
    with checkpoint:
        yield _Described(checkpoint.ref, checkpoint.config, checkpoint.manifest)
