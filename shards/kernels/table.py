"""Which kernels pay on this machine: measured once, kept in the user's cache folder.

The file's name is a digest of all that the figures depend on: CPU and its features, torch's version, our
compiled kernels (measured on one thread, so not on the number of threads). A file that is not exactly what
this program writes is ignored and replaced; figures decide about speed only, never whether results are right.

torch is measured by a process of its own (``shards/torch/bench.py``): one that computes with our kernels
never imports it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...swarm.runtime.c_build import NativeUnavailableError, cache_home, cpu_identity
from ...swarm.runtime.state_files import replace_file
from . import library as native
from .bench import NATIVE_WAYS, ROWS, TORCH_WAYS
from .library import library

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_BYTES = 16384
_LONGEST = 60.0
"""Seconds. No product of the measurement takes as long on a usable machine."""

_BENCH = "swarm_node.shards.torch.bench"
_BENCH_S = 60.0
"""Seconds that the process which measures torch may take: two on a quiet machine, most of them its import."""

_UNKNOWN = tuple(rows * 1e-4 for rows in ROWS)
"""Where nothing can be measured all ways are taken to be as fast, so that ours are chosen."""

_PROMPT_TOKENS = 4
"""A kernel is judged by a mix with this many prompt tokens for each generated one."""
_NATIVE_MARGIN = 1.5
"""Our kernels may be this many times slower in this measurement: a whole span is then one call, without
torch's bookkeeping for each operation, and activations are not rounded to bfloat16."""

# Half and a quarter of the bytes are worth some time, and where a kernel has no vector code for this CPU it
# loses by ten times and more. So wide margins, which other processes' noise does not cross.
_INT4_MARGIN = 2.0
_BF16_MARGIN = 2.0
_WIDE_MARGIN = 1 / 1.4
"""bfloat16 rounds the inputs, so for many rows it must be clearly faster to be taken."""

_TORCH_RIVALS = {
    "float32": ("torch float32",),
    "float16": ("torch float32",),
    "bfloat16": ("torch bfloat16", "torch float32"),
    "float8": ("torch bfloat16", "torch float32"),
    "int8": ("torch bfloat16",),
    "int4": ("torch int4",),
}


@dataclass(frozen=True, slots=True)
class KernelTable:
    """``seconds``: way (of ``bench``) → seconds of a product at each of ROWS.

    Ratios of them decide, so the clock does not matter.
    """

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def native(self) -> bool:
        """Whether the C kernels were there to be measured."""
        return NATIVE_WAYS[0] in self.seconds

    def native_pays(self, form: str, precision: str) -> bool:
        """``form``: as ``LoadPlan.form`` has it; ``precision``: a name in PRECISION_NAMES."""
        if not self.native:
            return False
        if form.startswith("int") and form != "int4":
            form = "int8"  # the same products of bytes
        way = f"native {form}" + (f" {precision}" if form in ("int8", "int4") else "")
        rival = min(self._cost(rival) for rival in _TORCH_RIVALS[form])
        return self._cost(way) < rival * _NATIVE_MARGIN

    @property
    def torch_int4_pays(self) -> bool:
        """True if torch's packed int4 kernel is vectorised here."""
        return self._one("torch int4") < _INT4_MARGIN * min(
            self._one("torch float32"), self._one("torch bfloat16")
        )

    @property
    def torch_bf16_pays(self) -> bool:
        """True if torch's bfloat16 product for one row is vectorised too."""
        return self._one("torch bfloat16") < _BF16_MARGIN * self._one("torch float32")

    @property
    def wide_bf16(self) -> bool:
        """True if bfloat16 is faster than float32 for many rows (AMX and the like)."""
        return self.seconds["torch bfloat16"][-1] < self.seconds["torch float32"][-1] * _WIDE_MARGIN

    def _one(self, way: str) -> float:
        return self.seconds[way][0]

    def _cost(self, way: str) -> float:
        """Seconds for a token of one stream, one of a batch, and the prompts that belong to one."""
        one, batch, many = (time / rows for time, rows in zip(self.seconds[way], ROWS, strict=True))
        return one + batch + _PROMPT_TOKENS * many


def kernel_table() -> KernelTable:
    """From the cache folder, or measured now: some seconds, once on a machine (see ``is_ready``)."""
    return _table(_kernels())


def is_ready() -> bool:
    """Whether ``kernel_table`` would answer at once, with nothing to compile or to measure."""
    if not native.is_ready():
        return False
    kernels = _kernels()
    return _read(_path(kernels), _ways(kernels)) is not None


def _kernels() -> str:
    """The name of our compiled library; none without it."""
    try:
        return Path(library()._name).name
    except NativeUnavailableError:
        return ""


def _ways(kernels: str) -> tuple[str, ...]:
    return TORCH_WAYS + NATIVE_WAYS if kernels else TORCH_WAYS


@cache
def _table(kernels: str) -> KernelTable:
    path, ways = _path(kernels), _ways(kernels)
    seconds = _read(path, ways)
    if seconds is None:
        seconds = _checked(measure(bool(kernels)), ways)
        if seconds is None:
            return KernelTable(dict.fromkeys(ways, _UNKNOWN))
        _write(path, seconds)
        logger.info("event=kernels_measured native=%s cache=%s", bool(kernels), path)
    return KernelTable(seconds)


def measure(native: bool) -> object:
    """What a process of its own finds: way → seconds, with ours where ``native``. None where torch is not
    installed, or where it failed, and then the log has the reason."""
    if not _torch_version():
        return None
    command = [sys.executable, "-P", "-m", _BENCH, *(["native"] if native else [])]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_BENCH_S, check=True
        )
        return json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()[-200:]
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    logger.warning("event=kernels_not_measured reason=%r", reason)
    return None


def _torch_version() -> str:
    """Without importing it; none where it is not installed."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _path(kernels: str) -> Path:
    parts = (str(FORMAT), cpu_identity(), _torch_version(), kernels)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return cache_home() / "kernels" / f"{digest}.json"


def _read(path: Path, ways: tuple[str, ...]) -> dict[str, tuple[float, ...]] | None:
    """None for a file that is missing, damaged or not ours."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        with path.open("rb") as file:
            document: Any = json.loads(file.read(MAX_BYTES))
        return _checked(document["seconds"], ways) if document["key"] == path.stem else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _checked(seconds: Any, ways: tuple[str, ...]) -> dict[str, tuple[float, ...]] | None:
    """None for what is not the figures of ``ways``."""
    if not isinstance(seconds, dict) or tuple(seconds) != ways:
        return None
    for figures in seconds.values():
        if (
            not isinstance(figures, (list, tuple))
            or len(figures) != len(ROWS)
            or not all(map(_plausible, figures))
        ):
            return None
    return {way: tuple(figures) for way, figures in seconds.items()}


def _plausible(seconds: object) -> bool:
    return isinstance(seconds, float) and math.isfinite(seconds) and 0 < seconds < _LONGEST


def _write(path: Path, seconds: Mapping[str, tuple[float, ...]]) -> None:
    """Write the whole file or nothing. If the folder cannot be written, the next start measures again."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, json.dumps({"key": path.stem, "seconds": seconds}, indent=1))
    except OSError as error:
        logger.info("event=kernels_not_cached reason=%r", str(error))
