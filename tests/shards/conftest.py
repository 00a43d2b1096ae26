"""Small Llama checkpoints on disk, in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.formats.tensors import model_tensors
from swarm_node.shards.layers.kv_pool import KvPool
from swarm_node.shards.models.backend import KvMemory, SpanBackend
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.pieces import manifest
from swarm_node.shards.torch.tensors.kv_pool import TorchKvPool
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span
from tests.shards.gguf_files import write_gguf_llama

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PIECE = 16 * 1024
HFLlama = Callable[..., Path]
GGUFLlama = Callable[..., Path]


@pytest.fixture(autouse=True)
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where peers share models: these are small here, and have many pieces all the same."""
    if hasattr(request.module, "PieceWorld"):
        monkeypatch.setattr(manifest, "USUAL_PIECE", PIECE)


class Sessions:
    """Sequences fed to a span, their pages and states scattered over the slots of one pool.

    Memory starts as NaN (int8, and where it must be finite: as large numbers), so that reading what nobody
    wrote shows. ``borders``: they may go back to any border of a page, in blocks that keep a state.
    """

    def __init__(
        self,
        model: SpanBackend[Any],
        count: int = 1,
        tokens: int = 64,
        kv_dtype: str = "float32",
        seed: int = 0,
        long: bool = False,
        borders: bool = False,
    ) -> None:
        self.model = model
        states = -(-tokens // PAGE_TOKENS) if borders else 1
        self.memory = OwnMemory(model, kv_dtype, tokens, count, states=states)
        order, pool = np.random.default_rng(seed), self.memory.pool
        self.tables = self.memory.tables
        self.tables[:] = order.permutation(pool.n_slots).astype(np.int32)[self.tables]
        if (states := self.memory.states) is not None:
            states[:] = order.permutation(pool.n_states).astype(np.int32)[states]
        self.pool = pool
        soil(pool)
        self.lengths = [0] * count
        self._long = long

    def forward(
        self, x: torch.Tensor, steps: Sequence[tuple[int, int]] = (), span: Span | None = None
    ) -> torch.Tensor:
        """``steps``: (session, tokens), in the order of ``x``'s rows; none: all for session 0."""
        pieces, row = [], 0
        for session, count in steps or [(0, len(x))]:
            start = self.lengths[session]
            pieces.append(self.memory.slice(start, count, row=row, session=session, long_context=self._long))
            self.lengths[session] += count
            row += count
        return torch.from_numpy(self.model.forward(x.float().numpy(), pieces, self.pool, span))

    def fork(self, source: int, target: int) -> None:
        """``target`` becomes what ``source`` is, in slots of its own."""
        for copy, table in ((self.pool.copy_slots, self.tables), (self.pool.copy_states, self.memory.states)):
            if table is not None:
                pairs = dict(zip(*(table[each].ravel().tolist() for each in (source, target)), strict=True))
                copy([*pairs], [*pairs.values()])
        self.lengths[target] = self.lengths[source]


def any_schedule(
    data: st.DataObject, fed: Sessions, xs: Sequence[torch.Tensor], border: int = 1
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Feeds ragged batches of ``fed``'s sessions, whose inputs are ``xs``, in any order; sessions go back to
    multiples of ``border`` and are fed again, the blocks in two goes → each time a session, the position of
    its first row, and what its rows became."""
    tokens, span = len(xs[0]), fed.model.span
    cut = data.draw(st.integers(0, len(span) - 1))
    spans = [Span(0, cut), Span(cut, len(span))] if cut else [span]
    for _ in range(data.draw(st.integers(1, 5))):
        chosen = data.draw(st.lists(st.integers(0, len(xs) - 1), min_size=1, unique=True))
        for session in chosen:
            if fed.lengths[session] == tokens or data.draw(st.integers(0, 3)) == 0:
                most = max(0, fed.lengths[session] - 1) // border
                fed.lengths[session] = border * data.draw(st.integers(0, most))
        starts = [fed.lengths[session] for session in chosen]
        counts = [data.draw(st.integers(1, min(50, tokens - start))) for start in starts]
        x = torch.cat([xs[s][a : a + n] for s, a, n in zip(chosen, starts, counts, strict=True)])
        for part in spans:
            for session, start in zip(chosen, starts, strict=True):
                fed.lengths[session] = start
            x = fed.forward(x, list(zip(chosen, counts, strict=True)), part)
        yield from zip(chosen, starts, x.split(counts), strict=True)


def soil(pool: KvMemory) -> None:
    if isinstance(pool, (KvPool, TorchKvPool)):
        pool.data[:] = 0xFF  # NaN; int8: -1, times NaN
        states = pool.states.data if isinstance(pool, KvPool) else pool.states
        states[:] = float("nan")
        return
    pool._cells[:] = 0x4700 if pool.kv_dtype == "bfloat16" else 100  # these bits are 32768
    if pool._scale_cells is not None:
        pool._scale_cells[:] = 100.0


@pytest.fixture(scope="session")
def sessions() -> type[Sessions]:
    return Sessions


@pytest.fixture(scope="session")
def hf_llama_in() -> HFLlama:
    """``hf_llama_in(parent, name="tiny", shards=1, ...)``: as ``hf_llama``, in the folder ``parent``."""

    def write(
        parent: Path,
        name: str = "tiny",
        *,
        shards: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        scale: Callable[[int], float] = lambda cols: 1.0,
        **changes: Any,
    ) -> Path:
        directory = parent / name
        directory.mkdir()
        document = {**TINY, **changes}
        (directory / "config.json").write_text(json.dumps(document))
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            tensor: (torch.randn(shape, generator=generator) * scale(shape[-1])).to(dtype)
            for tensor, shape in model_tensors(hf_config(document, {}, "test")).items()
        }
        if shards == 1:
            save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
            return directory
        parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
        for tensor, value in tensors.items():
            block = int(tensor.split(".")[2]) if tensor.startswith("model.layers.") else None
            part = shards - 1 if block is None else block * (shards - 1) // document["num_hidden_layers"]
            parts[part][tensor] = value
        weight_map: dict[str, str] = {}
        for index, part_tensors in enumerate(parts):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            save_file(part_tensors, directory / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part_tensors, file)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return directory

    return write


@pytest.fixture
def hf_llama(tmp_path: Path, hf_llama_in: HFLlama) -> HFLlama:
    """``hf_llama(name="tiny", shards=1, seed=0, dtype=..., scale=..., **config)`` → a folder, random weights.

    ``scale(columns)``: what standard normal values are multiplied by.
    """
    return partial(hf_llama_in, tmp_path)


@pytest.fixture
def gguf_llama(tmp_path: Path) -> GGUFLlama:
    """``gguf_llama(qtype="F32", tied=True, extra=None)`` → a GGUF file of 2 blocks: see ``gguf_files``."""
    return partial(write_gguf_llama, tmp_path)
