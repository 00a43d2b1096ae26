"""The compiler, the kernels in C and what they compute, and the devices."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

from ...shards.kernels import library
from ...shards.kernels.linear import ActivationPrecision, native_int4, native_int8
from ...shards.layers.quantize import to_int4, to_int8_groups
from ...shards.models.devices import INSTALL_COMPILER, INSTALL_MLX, has_mlx, is_apple_silicon
from ...swarm.codecs import native
from ...swarm.codecs.kinds import F8, INT8
from ...swarm.runtime.c_build import NativeUnavailableError, compiler, enabled
from .finding import Finding, Health

_ROWS, _COLS, _BATCH = 70, 288, 7
"""A matrix and a batch that fill no tile of the kernels exactly: their last tiles are tried, too."""
_NEAR = 2e-6
"""Largest difference from products in float64, relative to their norm."""


def look_at_kernels() -> Sequence[Finding]:
    """Compiles them where this machine has not done so, which takes some seconds."""
    if not enabled():
        return [
            Finding(
                "kernels",
                Health.WARN,
                "SWARM_NODE_NATIVE turns them off: torch computes, more slowly",
                "Unset it: env -u SWARM_NODE_NATIVE swarm-node doctor",
            )
        ]
    try:
        command = compiler()
        library.library()
    except NativeUnavailableError as error:
        return [
            Finding(
                "kernels",
                Health.WARN,
                "the kernels in C cannot be compiled: torch computes, more slowly",
                f"Install a C compiler: {INSTALL_COMPILER}.",
                {"error": str(error)},
            )
        ]
    wrong = [*_wrong_products(), *_wrong_rows()]
    details = {"compiler": " ".join(command)}
    if wrong:
        return [
            Finding(
                "kernels",
                Health.FAIL,
                f"they compute wrongly here: {', '.join(wrong)}",
                "Serve with --kernels torch, and report it with: swarm-node doctor --share",
                details,
            )
        ]
    return [
        Finding(
            "kernels",
            Health.OK,
            "compiled for this processor; products and rows on the wire are right",
            "",
            details,
        )
    ]


def _wrong_products() -> list[str]:
    """What differs from float64, or depends on the rows beside it."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((_ROWS, _COLS), dtype=np.float32)
    x = rng.standard_normal((_BATCH, _COLS), dtype=np.float32)
    int4, int8 = to_int4(weight), to_int8_groups(weight)
    groups = _COLS // int4.scale.shape[1]
    held = {
        "int4": (
            native_int4([int4], None, ActivationPrecision.EXACT),
            int4.q.astype(np.float64) * int4.scale.repeat(groups, 1) + int4.minimum.repeat(groups, 1),
        ),
        "int8": (
            native_int8([int8], None, ActivationPrecision.EXACT),
            int8.q.astype(np.float64) * int8.scale.repeat(_COLS // int8.scale.shape[1], 1),
        ),
    }
    wrong = []
    for name, (linear, values) in held.items():
        together = linear(x)
        right = x.astype(np.float64) @ values.T
        if np.abs(together - right).max() > _NEAR * np.linalg.norm(right):
            wrong.append(f"{name} products")
        alone = np.concatenate([linear(row[None]) for row in x])
        if together.tobytes() != alone.tobytes():
            wrong.append(f"{name} rows that depend on others")
    return wrong


def _wrong_rows() -> list[str]:
    """Codecs whose kernels write other bytes than numpy."""
    if not native.warm_up():
        return ["codecs cannot be loaded"]
    rows = np.random.default_rng(2).standard_normal((_BATCH, _COLS), dtype=np.float32)
    return [
        f"codec {codec.name}"
        for codec in (INT8, F8)
        if bytes(codec.encode(rows)) != bytes(codec.plain_payload(rows))
    ]


def look_at_devices() -> Sequence[Finding]:
    found = [] if importlib.util.find_spec("torch") is None else _torch_devices()
    if is_apple_silicon() and not has_mlx():
        return [Finding("devices", Health.WARN, "this Mac's GPU needs MLX", f"Install it: {INSTALL_MLX}")]
    if has_mlx():
        found.append("mlx")
    return [Finding("devices", Health.OK, ", ".join(["cpu", *found]))]


def _torch_devices() -> list[str]:
    import torch  # here: it takes a second

    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            found.append(f"cuda:{number} ({name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
