"""Inside llama.cpp's own Python, which need not have our packages: RPC servers, and a client that looks up.

``lookup`` guesses from the text what follows the last tokens, and one batch checks it: the loop of
llama.cpp's lookup example, in Python, around its C functions.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...bench.locals import LlamaCpp
from ...processes.parent import tell
from ...prompts import BLOCKS, MODEL

PORT = 50052
NGRAMS = (4, 3, 2, 1)
"""Last tokens that are looked for in the text before them."""
TOKENS = 2048
"""That prompt and answer may have."""


def serve(*, host: str) -> None:
    """An RPC server of one thread; never returns."""
    whole, rpc = _library("ggml"), _library("ggml-rpc")
    whole.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = ctypes.c_void_p(whole.ggml_backend_dev_by_type(0))  # the processor
    rpc.ggml_backend_rpc_start_server.argtypes = (
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t),
        ctypes.POINTER(ctypes.c_void_p),
    )
    tell("ready")
    rpc.ggml_backend_rpc_start_server(f"{host}:{PORT}".encode(), None, 1, 1, ctypes.byref(device))


def answer_orders(*, servers: Sequence[str]) -> str:
    """llama-cpp-python's version, after the last order. ``servers``: host:port, in the order of blocks."""
    import llama_cpp

    time.sleep(1.0)  # servers say that they are ready before they listen
    model = LlamaCpp(str(MODEL), 1, 1, TOKENS, partial(spread_over, list(servers)))
    tell("ready")
    while order := json.loads(sys.stdin.readline() or "null"):
        tell("answered", **answer(model, **order))
    return str(llama_cpp.__version__)


def answer(model: Any, *, prompt: Sequence[int], forced: Sequence[int], ahead: int) -> dict[str, Any]:
    """The ``forced`` text token by token, each the only one that is allowed behind those before it, whatever
    the model prefers. ``ahead``: tokens that a lookup guesses at most."""
    model.clear()
    model.run([(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)])
    ids, end = [*prompt, forced[0]], len(prompt) + len(forced)
    batches, began = 0, time.perf_counter()
    while len(ids) < end:
        guesses = lookup(ids, min(ahead, end - len(ids) - 1))
        first = len(ids) - 1
        model.run([(token, first + n, 0, True) for n, token in enumerate((ids[-1], *guesses))])
        batches += 1
        came = forced[len(ids) - len(prompt) :][: len(guesses) + 1]
        right = 0
        while right < len(guesses) and guesses[right] == came[right]:
            right += 1
        ids += came[: right + 1]
        model.forget(0, len(ids) - 1)
    seconds = time.perf_counter() - began
    return {"tokens": len(forced), "tokens_per_s": (len(forced) - 1) / seconds, "batches": batches}


def lookup(ids: Sequence[int], most: int) -> list[int]:
    """What followed the longest of the last few tokens when they came before, most lately."""
    for length in NGRAMS:
        last = list(ids[-length:])
        for start in range(len(ids) - length - 1, -1, -1):
            if most > 0 and list(ids[start : start + length]) == last:
                return list(ids[start + length : start + length + most])
    return []


def spread_over(servers: Sequence[str], params: Any) -> None:
    """``params``: llama_model_params. All blocks go to RPC servers, evenly; embedding and head stay here.
    Raises RuntimeError where a server does not answer."""
    base, rpc = _library("ggml-base"), _library("ggml-rpc")
    for function in (rpc.ggml_backend_rpc_add_server, base.ggml_backend_reg_dev_get):
        function.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_get.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    base.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * (len(servers) + 1))()
    for number, server in enumerate(servers):
        backend = rpc.ggml_backend_rpc_add_server(ctypes.c_char_p(server.encode()))
        if not backend:
            raise RuntimeError(f"no RPC server of llama.cpp answers at {server}")
        devices[number] = base.ggml_backend_reg_dev_get(backend, 0)
    here = (_Override * 2)(_Override(b"^(output|token_embd)[.]weight", base.ggml_backend_cpu_buffer_type()))
    split = (ctypes.c_float * 128)(*[1.0] * len(servers))
    params.devices, params.tensor_buft_overrides = ctypes.addressof(devices), ctypes.addressof(here)
    params.tensor_split = split
    params.n_gpu_layers = BLOCKS + 1
    _KEPT.extend((devices, here, split))


_KEPT: list[Any] = []
"""What parameters point at."""


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffers", ctypes.c_void_p))


def _library(name: str) -> Any:
    import llama_cpp

    return ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / f"lib{name}.so"))
