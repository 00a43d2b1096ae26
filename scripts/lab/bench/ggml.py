"""The same products by ggml, llama.cpp's library, as llama-cpp-python brings it: its functions by ctypes.

Weights lie as in the file and, where ggml can do that, as it lays them out for this processor.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .figures import high
from .kernels import COLS, HELD_BYTES, ROWS, TOGETHER, sane_rows

_NUMBERS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12}
_NUMBERS |= {"Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "MXFP4": 39, "IQ3_S": 21, "IQ2_S": 22}
_F32 = 0
_REPACKED = "_Z35ggml_backend_cpu_repack_buffer_typev"
_GRAPH_BYTES = 1 << 22
_POOL_BYTES = 1 << 12
_EXTRA = 320
"""Where ``ggml_tensor`` has ``extra``: NULL where the buffers have no layout of their own for its type."""


def products(*, threads: int, qtypes: Sequence[str], seconds: float) -> dict[str, dict[str, float]]:
    base, cpu = _libraries()
    backend = cpu.ggml_backend_cpu_init()
    cpu.ggml_backend_cpu_set_n_threads(backend, threads)
    base.ggml_threadpool_params_init(parameters := ctypes.create_string_buffer(_POOL_BYTES), threads)
    cpu.ggml_backend_cpu_set_threadpool(backend, cpu.ggml_threadpool_new(parameters))
    layouts = {"file": base.ggml_backend_cpu_buffer_type()}
    if hasattr(cpu, _REPACKED):
        repacked = getattr(cpu, _REPACKED)
        repacked.restype = ctypes.c_void_p
        layouts["repacked"] = repacked()
    found: dict[str, dict[str, float]] = {}
    for qtype in qtypes:
        if qtype not in _NUMBERS:
            continue
        times = {
            layout: _product_seconds(base, backend, buffers, _NUMBERS[qtype], seconds / len(layouts))
            for layout, buffers in layouts.items()
        }
        times = {layout: each for layout, each in times.items() if each is not None}
        found[qtype] = {"product_us": 1e6 * min(times.values())}
        found[qtype] |= {f"{layout}_us": 1e6 * each for layout, each in times.items()}
    return found


def _product_seconds(base: Any, backend: int, buffers: int, number: int, seconds: float) -> float | None:
    row_bytes = base.ggml_row_size(number, COLS)
    copies = HELD_BYTES // (row_bytes * ROWS) // TOGETHER * TOGETHER
    weights_context = base.ggml_init(_Init(1 << 20, None, True))
    context = base.ggml_init(_Init(_GRAPH_BYTES, None, True))
    weights = [base.ggml_new_tensor_2d(weights_context, number, COLS, ROWS) for _ in range(copies)]
    held = base.ggml_backend_alloc_ctx_tensors_from_buft(weights_context, buffers)
    base.ggml_backend_buffer_set_usage(held, 1)  # weights
    plain = base.ggml_backend_cpu_buffer_type()
    if buffers != plain and not ctypes.c_void_p.from_address(weights[0] + _EXTRA).value:
        base.ggml_backend_buffer_free(held)
        base.ggml_free(weights_context)
        base.ggml_free(context)
        return None
    rows = sane_rows(row_bytes)
    for each in weights:
        base.ggml_backend_tensor_set(each, rows.ctypes.data, 0, rows.nbytes)
    x = base.ggml_new_tensor_2d(context, _F32, COLS, 1)
    graphs = []
    for at in range(0, copies, TOGETHER):
        graph = base.ggml_new_graph_custom(context, 64, False)
        for each in weights[at : at + TOGETHER]:
            base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, each, x))
        graphs.append(graph)
    inputs = base.ggml_backend_alloc_ctx_tensors_from_buft(context, plain)
    values = (ctypes.c_float * COLS)(*(0.01 * (i % 97 - 48) for i in range(COLS)))
    base.ggml_backend_tensor_set(x, values, 0, ctypes.sizeof(values))
    speeds: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(speeds) < 2:
        before = time.perf_counter()
        if base.ggml_backend_graph_compute(backend, graphs[len(speeds) % len(graphs)]):
            raise RuntimeError("ggml failed to compute a product")
        speeds.append(TOGETHER / (time.perf_counter() - before))
    for buffer in (held, inputs):
        base.ggml_backend_buffer_free(buffer)
    for each in (weights_context, context):
        base.ggml_free(each)
    return 1 / high(speeds)


class _Init(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _libraries() -> tuple[Any, Any]:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    arguments = {
        "ggml_init": (_Init,),
        "ggml_free": (pointer,),
        "ggml_row_size": (number, ctypes.c_int64),
        "ggml_new_tensor_2d": (pointer, number, ctypes.c_int64, ctypes.c_int64),
        "ggml_mul_mat": (pointer,) * 3,
        "ggml_new_graph_custom": (pointer, size, ctypes.c_bool),
        "ggml_build_forward_expand": (pointer, pointer),
        "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, pointer),
        "ggml_backend_buffer_set_usage": (pointer, number),
        "ggml_backend_buffer_free": (pointer,),
        "ggml_backend_cpu_buffer_type": (),
        "ggml_backend_tensor_set": (pointer, pointer, size, size),
        "ggml_backend_graph_compute": (pointer, pointer),
        "ggml_threadpool_params_init": (pointer, number),
    }
    for name, types in arguments.items():
        function = getattr(base, name)
        function.argtypes, function.restype = types, pointer
    base.ggml_row_size.restype = size
    base.ggml_backend_graph_compute.restype = number
    cpu.ggml_backend_cpu_init.restype = cpu.ggml_threadpool_new.restype = pointer
    cpu.ggml_backend_cpu_set_n_threads.argtypes = (pointer, number)
    cpu.ggml_backend_cpu_set_threadpool.argtypes = (pointer, pointer)
    cpu.ggml_threadpool_new.argtypes = (pointer,)
    return base, cpu
