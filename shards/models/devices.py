"""Which devices there are, which one is the default, and how much memory they have."""

from __future__ import annotations

import importlib.util
import platform
import sys
from typing import NamedTuple

from ...swarm.errors import UsageError
from ...swarm.runtime.extras import install_extra

CONCRETE = ("cpu", "cuda", "mps", "mlx")
DEVICES = ("auto", *CONCRETE)
"""The values of ``--device``."""
INSTALL_MLX = f"{install_extra('mlx')} in the checkout"
INSTALL_COMPILER = f"{install_extra('compiler')} in the checkout"
INSTALL_TORCH = "pip install 'torch>=2.8,<3'"


class DeviceChoice(NamedTuple):
    """``note``: what a person should know of the choice; empty where there is nothing to say."""

    name: str
    note: str = ""


def choose_device(wanted: str = "auto", *, only_cpu: bool = False) -> DeviceChoice:
    """``wanted``, or for "auto" what suits this machine: MLX on Apple Silicon, else the CPU.

    On Apple Silicon without MLX it is torch's MPS, else the CPU; the note then says how to install MLX. CUDA
    is not chosen by itself: the machine may have other uses for it. ``only_cpu``: no other device can do what
    is asked for. Raises UsageError for a device that this machine does not have.
    """
    if wanted != "auto":
        check_device(wanted)
        return DeviceChoice(wanted)
    if only_cpu or not is_apple_silicon():
        return DeviceChoice("cpu")
    if has_mlx():
        return DeviceChoice("mlx")
    return DeviceChoice(without_mlx(), f"MLX computes faster on this Mac: {INSTALL_MLX}")


def without_mlx() -> str:
    """What suits an Apple Silicon Mac where MLX cannot compute: torch's MPS, else the CPU."""
    try:
        import torch  # here: it takes a second, and devices are chosen while the command line is read
    except ImportError:
        return "cpu"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def is_apple_silicon() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def has_mlx() -> bool:
    """Whether MLX is installed; it is not imported."""
    try:
        return importlib.util.find_spec("mlx.core") is not None
    except ImportError:
        return False


def require_mlx() -> None:
    """Raises UsageError where MLX cannot be imported."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        if has_mlx():
            raise UsageError(
                f"MLX is installed but cannot be used: {error}", hint=f"Install it again: {INSTALL_MLX}"
            ) from None
        linux = "" if is_apple_silicon() else " On Linux it computes on the CPU, for tests."
        raise UsageError("--device mlx needs MLX", hint=f"Install it: {INSTALL_MLX}.{linux}") from None


def require_torch(what: str, instead: str) -> None:
    """Raises UsageError where torch cannot be imported: ``what`` needs it, and what may be done ``instead``,
    a sentence without its point."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{what} needs torch, which cannot be imported: {reason}",
            hint=f"{instead}, or install torch: {INSTALL_TORCH}.",
        ) from None


def check_device(name: str) -> None:
    """Raises UsageError for a device that this machine does not have."""
    if name == "mlx":
        require_mlx()
    else:
        resolve_device(name)


def resolve_device(name: str) -> str:
    """``name``, of torch or the CPU. UsageError naming what torch has on this machine, if it has no such
    device."""
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return kind
    if name == "mlx":
        raise UsageError(
            "torch does not compute on MLX", hint="--device mlx is for the blocks that a node serves."
        )
    require_torch(f"device {name!r}", "Use --device cpu")
    import torch  # here: it takes a second, and most commands never ask

    available = ["cpu"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available += ["cuda", *(f"cuda:{i}" for i in range(1, count))] if count else []
    if torch.backends.mps.is_available():
        available.append("mps")
    if kind not in available or (kind == "cuda" and index.lstrip("0") and f"cuda:{index}" not in available):
        raise UsageError(
            f"this machine has no device {name!r}", hint=f"Available here: {', '.join(available)}."
        )
    return name
