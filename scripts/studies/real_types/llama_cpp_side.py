"""Quantizes files and computes logits with llama.cpp; ``scripts/study real_types`` runs it in an environment
that has llama-cpp-python. Questions and answers are JSON, one a line."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np

F32 = 0
said: list[str] = []


@llama_cpp.llama_log_callback
def listen(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    said.append(text.decode(errors="replace"))


def quantize(source: str, to: str, ftype: int, columns: dict[str, int], pure: bool) -> None:
    """``columns``: how many each matrix has, by its name. All are equally important."""
    rows = {name: np.ones(count, np.float32) for name, count in columns.items()}
    important = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()
    for each, (name, values) in zip(important, rows.items(), strict=False):
        each.name, each.size = name.encode(), len(values)
        each.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = ftype, 2
    options.allow_requantize, options.pure = True, pure
    options.imatrix = important
    if llama_cpp.llama_model_quantize(source.encode(), to.encode(), ctypes.byref(options)):
        raise RuntimeError("".join(said[-3:]).strip() or "it does not say why")


def logits(model: str, ids: list[int], to: str) -> None:
    """Writes (tokens, vocab) float32 to the file ``to``; keys and values are held in float32."""
    loaded = llama_cpp.Llama(
        model, n_ctx=len(ids) + 8, n_batch=len(ids), n_threads=2, n_threads_batch=2, logits_all=True,
        type_k=F32, type_v=F32, flash_attn=False, verbose=False,
    )  # fmt: skip
    loaded.eval(ids)
    np.save(to, loaded.scores[: len(ids)].astype(np.float32))
    loaded.close()


@contextlib.contextmanager
def answers_apart() -> Iterator[Any]:
    """Where answers go: the library itself writes to standard output, too."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        yield out


def main() -> None:
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    tasks = {"quantize": quantize, "logits": logits}
    with answers_apart() as out:
        for line in sys.stdin:
            question = json.loads(line)
            said.clear()
            try:
                tasks[question.pop("task")](**question)
                answer = {}
            except (RuntimeError, ValueError, AssertionError) as error:
                answer = {"failed": str(error)}
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
