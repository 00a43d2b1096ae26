"""What a model of experts costs a node that has memory for a quarter of it."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.formats.block_config import (
    AttentionConfig,
    BlockConfig,
    ExpertsConfig,
    MlpConfig,
    NormConfig,
    RouterConfig,
)
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.mapped_file import MappedFile
from swarm_node.shards.formats.qtypes import row_bytes
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.formats.rope_config import RopeConfig
from swarm_node.shards.formats.tensors import TensorInfo, block_tensors
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.native_span import WEIGHTS_SHARE, NativeSpan
from swarm_node.shards.pieces.digest import identity_of
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import CheckpointError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.types import Span

from ..lab.command_line import add_json, console, count, positive, run_and_report, say, script_parser
from ..lab.processes.worker import run_in_process

DESCRIPTION = """\
Makes a file of blocks with 128 experts each, of which a row takes 8, in Q4_0 and with made-up weights.
The routers prefer some experts, as trained ones do: --skew. Then a process computes the same rows once
with all experts in memory and once with as many as --limit allows, in a memory cgroup of that size where
the system lets it, the file's pages dropped from memory before. Shows speeds, what was read, and whether
all outputs have the same bits. Exit code 1 if they have not.
"""
HIDDEN, INNER, COUNT, USED = 1024, 512, 128, 8
QTYPE = "Q4_0"
OWN_MB = 120
"""Of the limit, for Python, the KV cache and the pages of the file that are being read."""
CGROUPS = Path("/sys/fs/cgroup/memory")
READ_BYTES = 1 << 20
"""What is read at a time when the disk is measured."""


def model_config(blocks: int) -> ModelConfig:
    """Tiny attention; a block adds little to what goes through it, as those of trained models do."""
    norm = NormConfig(1e-5)
    attention = AttentionConfig(4, 2, 64, 0.125, RopeConfig(64))
    router = RouterConfig(bias=True)
    block = BlockConfig(
        attention,
        None,
        ExpertsConfig(COUNT, USED, MlpConfig(INNER), router),
        norm=norm,
        mlp_norm=norm,
        residual_multiplier=0.3,
    )
    return ModelConfig("made up", (block,) * blocks, HIDDEN, 1000, norm, 4096)


def is_expert(name: str) -> bool:
    return ".experts." in name


class MadeFile:
    """A ``TensorSource``: the tensors of all blocks, one behind the other in ``path``."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path = path
        self.manifest: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self.size = 0
        for block in range(config.n_blocks):
            for name, shape in block_tensors(config, block).items():
                qtype = QTYPE if is_expert(name) else "F32"
                rows = 1 if len(shape) == 1 else shape[0]
                nbytes = rows * row_bytes(qtype, shape[-1])
                self.manifest[name] = TensorInfo(name, shape, qtype, nbytes)
                self._offsets[name] = self.size
                self.size += nbytes
        self._file: MappedFile | None = None

    def write(self, skew: float) -> None:
        rng = np.random.default_rng(0)
        groups = rng.integers(0, 256, (1 << 22, row_bytes(QTYPE, 32)), dtype=np.uint8)
        groups[:, :2] = np.array([HIDDEN**-0.5 / 4.6], np.float16).view(np.uint8)  # then weights are as usual
        with self.path.open("wb") as file:
            for info in self.manifest.values():
                if is_expert(info.name):
                    count_of_groups = info.nbytes // groups.shape[1]
                    start = int(rng.integers(len(groups) - count_of_groups))
                    file.write(groups[start : start + count_of_groups].tobytes())
                else:
                    file.write(_dense(info, skew, rng).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def tensor(self, name: str) -> RawTensor:
        self._file = self._file or MappedFile(self.path)
        info = self.manifest[name]
        rows = 1 if len(info.shape) == 1 else info.shape[0]
        stored = self._file.slice(self._offsets[name], info.nbytes).reshape(rows, -1)
        return RawTensor(name, info.shape, info.qtype, stored, check=self._file.check)

    def release(self) -> None:
        if self._file is not None:
            self._file.release()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _dense(info: TensorInfo, skew: float, rng: np.random.Generator) -> np.ndarray:
    """float32 values. The router's scores of a row are about normal; its bias falls with an expert's rank."""
    if info.name.endswith("router.bias"):
        return (-skew * np.log(1 + rng.permutation(info.shape[0]))).astype(np.float32)
    if len(info.shape) == 1:
        return np.ones(info.shape, np.float32)
    return rng.standard_normal(info.shape, np.float32) * np.float32(info.shape[1] ** -0.5)


class _NoTokenizer:
    """A ``TokenizerSource``."""

    def check(self) -> None:
        raise CheckpointError("made-up blocks have no tokenizer")

    def build(self) -> Tokenizer:
        raise CheckpointError("made-up blocks have no tokenizer")


def open_made(path: Path, blocks: int) -> Checkpoint:
    config = model_config(blocks)
    return Checkpoint("made up", config, MadeFile(path, config), _NoTokenizer(), identity_of(()))


def compute(
    *,
    path: str,
    blocks: int,
    threads: int,
    steps: int,
    sessions: list[int],
    limit: int | None,
    ahead: bool = True,
) -> dict[str, Any]:
    """In a process of its own. ``limit``: bytes of memory; None: no limit."""
    kind = None if limit is None else _confine(limit)
    memory = None if limit is None else int((limit - (OWN_MB << 20)) / WEIGHTS_SHARE)
    span, options = Span(0, blocks), LoadOptions(kernels="native")
    with open_made(Path(path), blocks) as checkpoint:
        model = load_backend(checkpoint, span, options, threads=threads, memory=memory)
        if not isinstance(model, NativeSpan):
            raise TypeError(f"not our kernels: {model.kernels}")
        runs = {number: _decode(model, number, steps) for number in sessions}
        store = model.store
        return {
            "limit": kind,
            "weights": model.weights,
            "rss_mb": psutil.Process().memory_info().rss / 1e6,
            "experts": None if store is None else [store.slots, store.count],
            "runs": runs,
        }


def _decode(model: NativeSpan, sessions: int, steps: int) -> dict[str, Any]:
    """As many steps again come first, for the store to learn what is hot."""
    pages = -(-2 * steps // PAGE_TOKENS)
    blocks = len(model.span)
    pool = model.new_pool(sessions * blocks * pages, "float32")
    tables = np.arange(pool.n_slots, dtype=np.int32).reshape(sessions, blocks, pages)
    rng = np.random.default_rng(sessions)
    outputs = hashlib.sha256()
    before, began = None, 0.0
    for step in range(2 * steps):
        if step == steps:
            before = None if model.store is None else model.store.state()
            began = time.perf_counter()
        slices = [BatchSlice(table, 0, row, step, 1) for row, table in enumerate(tables)]
        x = rng.standard_normal((sessions, HIDDEN), np.float32)
        outputs.update(model.forward(x, slices, pool).tobytes())
    found: dict[str, Any] = {
        "tokens_per_s": sessions * steps / (time.perf_counter() - began),
        "outputs": outputs.hexdigest(),
    }
    if model.store is not None and before is not None:
        after = model.store.state()
        wanted = after.wanted - before.wanted
        found |= {
            "held": (after.held - before.held) / wanted,
            "late": (after.late - before.late) / wanted,
            "read_mb_a_step": (after.read_bytes - before.read_bytes) / steps / 1e6,
            "waited_ms_a_step": 1000 * (after.waited_s - before.waited_s) / steps,
        }
    return found


def _confine(limit: int) -> str:
    """This process into a memory cgroup of ``limit`` bytes. Returns how it is limited."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line.split(":memory:/", 1)[1] for line in lines if ":memory:/" in line), None)
    group = CGROUPS / (own or "") / f"experts-{os.getpid()}"
    try:
        if own is None:
            raise OSError("no memory cgroup")
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        return f"only the store's own budget ({error})"
    return "memory cgroup, the file's pages included"


def _remove_groups() -> None:
    for group in CGROUPS.rglob("experts-*"):
        if not (group / "cgroup.procs").read_text(encoding="utf-8").strip():
            group.rmdir()


def drop_pages(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def disk_bytes_per_s(path: Path, nbytes: int = 1 << 28) -> float:
    """Reads in random order, one at a time, of pages that are not in memory."""
    drop_pages(path)
    places = np.random.default_rng(0).permutation(path.stat().st_size // READ_BYTES)[: nbytes // READ_BYTES]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        began = time.perf_counter()
        for place in places:
            os.pread(descriptor, READ_BYTES, int(place) * READ_BYTES)
        return len(places) * READ_BYTES / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
        drop_pages(path)


def measure(path: Path, *, blocks: int, limit: int, skew: float, threads: int, steps: int) -> dict[str, Any]:
    made = MadeFile(path, model_config(blocks))
    say(f"making {path}: {made.size / 1e9:.1f} GB")
    made.write(skew)
    disk = disk_bytes_per_s(path)
    common: dict[str, Any] = {
        "path": str(path),
        "blocks": blocks,
        "threads": threads,
        "steps": steps,
        "sessions": [1, 8],
    }
    function = "scripts.studies.experts_from_disk:compute"
    say("all in memory")
    whole = run_in_process(function, limit=None, **common)
    drop_pages(path)
    say(f"in {limit / 1e9:.1f} GB")
    part = run_in_process(function, limit=limit, **common)
    drop_pages(path)
    _remove_groups()
    return {"file_bytes": made.size, "disk_bytes_per_s": disk, "skew": skew, "whole": whole, "part": part}


def same(report: dict[str, Any]) -> bool:
    """Whether all outputs have the same bits."""
    runs = zip(report["whole"]["runs"].values(), report["part"]["runs"].values(), strict=True)
    return all(whole["outputs"] == part["outputs"] for whole, part in runs)


def show(report: dict[str, Any]) -> None:
    part, disk = report["part"], report["disk_bytes_per_s"] / 1e9
    held, count_of_all = part["experts"]
    lines = [
        f"file {report['file_bytes'] / 1e9:.2f} GB, skew {report['skew']}, disk {disk:.2f} GB/s",
        f"limited by: {part['limit']}; {held} of {count_of_all} experts in memory",
        f"resident {report['whole']['rss_mb']:.0f} and {part['rss_mb']:.0f} MB; same bits: {same(report)}",
    ]
    for sessions, few in part["runs"].items():
        whole = report["whole"]["runs"][sessions]["tokens_per_s"]
        lines += [
            f"{sessions} sessions: {whole:.1f} tokens/s with all in memory, {few['tokens_per_s']:.1f} now: "
            f"{few['tokens_per_s'] / whole:.2f}",
            f"  of wanted experts {100 * few['held']:.1f} % are there, {100 * few['late']:.1f} % coming; "
            f"a step reads {few['read_mb_a_step']:.1f} MB and waits {few['waited_ms_a_step']:.1f} ms",
        ]
    console.print("\n".join(lines), markup=False)


def main() -> int:
    parser = script_parser("study experts_from_disk", DESCRIPTION)
    parser.add_argument("--file", type=Path, default=Path("build/experts.bin"), help="default: %(default)s")
    parser.add_argument("--blocks", type=count, default=36, help="of 113 MB each (default: %(default)s)")
    parser.add_argument("--limit", type=positive, default=1.0, help="GB of memory (default: %(default)s)")
    parser.add_argument(
        "--skew", type=positive, default=1.0, help="how unequal experts are (default: %(default)s)"
    )
    parser.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="default: the cores")
    parser.add_argument("--steps", type=count, default=60, help="that are measured (default: %(default)s)")
    add_json(parser)
    options = parser.parse_args()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    sizes = {"blocks": options.blocks, "threads": options.threads, "steps": options.steps}
    return run_and_report(
        lambda: measure(options.file, limit=int(options.limit * 1e9), skew=options.skew, **sizes),
        show,
        options.json,
        is_good=same,
        errors=(OSError,),
    )


if __name__ == "__main__":
    sys.exit(main())
