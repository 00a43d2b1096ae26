"""Compiles the native kernels before they are needed, where they are not in the cache yet."""

from __future__ import annotations

from collections.abc import Callable

from ..shards.kernels import library
from ..swarm.codecs import native
from ..swarm.runtime.c_build import NativeUnavailableError


def compile_kernels(device: str, on_compiling: Callable[[], None]) -> None:
    """Blocks for the seconds that it takes, the first time on this machine; call it in a worker thread.

    ``on_compiling`` is called, in the same thread, before anything is compiled. The wire codec is for every
    ``device``, the blocks' kernels are for the CPU. Where nothing can be compiled the plain paths compute;
    that is told to the log by who tried.
    """
    blocks = device == "cpu"
    if not native.is_ready() or (blocks and not library.is_ready()):
        on_compiling()
    native.warm_up()
    if blocks:
        try:
            library.library()
        except NativeUnavailableError:
            pass  # logged once by the build; the span model then computes with torch
