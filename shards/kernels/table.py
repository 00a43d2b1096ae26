"""Which kernels pay on this machine: measured once, kept in the user's cache folder.

The file's name is a digest of all that the figures depend on: CPU and its features, torch's version, our
compiled kernels (measured on one thread, so not on the number of threads). A file that is not exactly what
this program writes is ignored and replaced; figures decide about speed only, never whether results are right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...swarm.runtime.c_build import NativeUnavailableError, cache_home, cpu_identity
from ...swarm.runtime.state_files import replace_file
from .bench import NATIVE_WAYS, ROWS, TORCH_WAYS, measure
from .library import library

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_BYTES = 16384
_LONGEST = 60.0
"""Seconds. No product of the measurement takes as long on a usable machine."""

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
    "int8": ("torch bfloat16",),
    "int4": ("torch int4",),
}


@dataclass(frozen=True, slots=True)
class KernelTable:
    """``seconds``: way (of kernel_bench) → seconds of a product at each of ROWS.

    Ratios of them decide, so the clock does not matter.
    """

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def native(self) -> bool:
        """Whether the C kernels were there to be measured."""
        return NATIVE_WAYS[0] in self.seconds

    def native_pays(self, form: str, precision: str) -> bool:
        """``form``: float32, float16, bfloat16, int8 or int4; ``precision``: a name in PRECISION_NAMES."""
        if not self.native:
            return False
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
    """From the cache folder, or measured now (under 0.3 s, and a compiler's seconds the first time)."""
    try:
        kernels = Path(library()._name).name
    except NativeUnavailableError:
        kernels = ""
    return _table(kernels)


@cache
def _table(kernels: str) -> KernelTable:
    ways = TORCH_WAYS + NATIVE_WAYS if kernels else TORCH_WAYS
    path = cache_home() / "kernels" / f"{_digest(kernels)}.json"
    seconds = _read(path, ways)
    if seconds is None:
        seconds = measure(native=bool(kernels))
        _write(path, seconds)
        logger.info("event=kernels_measured native=%s cache=%s", bool(kernels), path)
    return KernelTable(seconds)


def _digest(kernels: str) -> str:
    parts = (str(FORMAT), cpu_identity(), torch.__version__, kernels)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read(path: Path, ways: tuple[str, ...]) -> dict[str, tuple[float, ...]] | None:
    """None for a file that is missing, damaged or not ours."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        with path.open("rb") as file:
            document: Any = json.loads(file.read(MAX_BYTES))
        seconds = document["seconds"]
        if document["key"] != path.stem or tuple(seconds) != ways:
            return None
        for times in seconds.values():
            if len(times) != len(ROWS) or not all(_plausible(time) for time in times):
                return None
        return {way: tuple(times) for way, times in seconds.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _plausible(seconds: object) -> bool:
    return isinstance(seconds, float) and math.isfinite(seconds) and 0 < seconds < _LONGEST


def _write(path: Path, seconds: Mapping[str, tuple[float, ...]]) -> None:
    """Write the whole file or nothing. If the folder cannot be written, the next start measures again."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, json.dumps({"key": path.stem, "seconds": seconds}, indent=1))
    except OSError as error:
        logger.info("event=kernels_not_cached reason=%r", str(error))
