"""The same GGUF file without a swarm: transformers in float32, and llama.cpp, each in a measuring process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..prompts import MODEL, PROMPT, long_prompt, question
from .figures import rss_mb

Decode = Callable[[list[int], int], tuple[float, float, float]]
"""``decode(prompt ids, new tokens)``: greedy; seconds to the first token, and from there to the last, and the
processor time of the latter."""


def _runs(
    decode: Decode,
    short: list[int],
    encode: Callable[[str], Sequence[int]],
    *,
    new_tokens: int,
    prefill_tokens: int,
    repeat: int,
) -> dict[str, Any]:
    decode(short, 4)
    runs = []
    for number in range(repeat):
        _, decode_s, processor_s = decode(short, new_tokens)
        prefill_s, *_ = decode(long_prompt(encode, prefill_tokens, number), 1)
        runs.append(
            {
                "decode_tokens_per_s": (new_tokens - 1) / decode_s,
                "processor_ms_per_token": 1000 * processor_s / (new_tokens - 1),
                "prefill_s": prefill_s,
                "prefill_tokens": prefill_tokens,
            }
        )
    return {"runs": runs, "rss_mb": rss_mb()}


def transformers(*, threads: int, **sizes: int) -> dict[str, Any]:
    import torch

    from ..transformers_oracle import load_transformers

    torch.set_num_threads(threads)
    model, tokenizer = load_transformers(MODEL)
    chat = [{"role": "user", "content": PROMPT}]
    short = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    def decode(ids: list[int], new_tokens: int) -> tuple[float, float]:
        with torch.inference_mode():
            began = time.perf_counter()
            output = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = int(output.logits[0, -1].argmax())
            prefilled, on_core = time.perf_counter(), time.process_time()
            for _ in range(new_tokens - 1):
                output = model(
                    torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
                )
                token = int(output.logits[0, -1].argmax())
            ended = time.perf_counter()
            return prefilled - began, ended - prefilled, time.process_time() - on_core

    return _runs(decode, short, tokenizer.encode, **sizes)


def llama_cpp(*, threads: int, **sizes: int) -> dict[str, Any]:
    from llama_cpp import Llama

    llama = Llama(str(MODEL), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    short = llama.tokenize(_chat(PROMPT), add_bos=False, special=True)

    def decode(ids: list[int], new_tokens: int) -> tuple[float, float]:
        llama.reset()
        began = time.perf_counter()
        llama.eval(ids)
        token = llama.sample(temp=0.0)
        prefilled, on_core = time.perf_counter(), time.process_time()
        for _ in range(new_tokens - 1):
            llama.eval([token])
            token = llama.sample(temp=0.0)
        ended = time.perf_counter()
        return prefilled - began, ended - prefilled, time.process_time() - on_core

    def encode(text: str) -> list[int]:
        return llama.tokenize(text.encode(), add_bos=False)

    return _runs(decode, short, encode, **sizes)


class LlamaCpp:
    """llama.cpp without its tokenizer's and sampler's Python: batches of rows, as its server makes them."""

    def __init__(
        self,
        path: str,
        threads: int,
        sequences: int,
        tokens: int,
        adjust: Callable[[Any], None] = lambda params: None,
    ) -> None:
        """``tokens``: of all ``sequences`` together, at most. ``adjust`` changes llama_model_params."""
        import ctypes

        import llama_cpp

        llama_cpp.llama_backend_init()
        self._no_log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._no_log, ctypes.c_void_p())
        model_params = llama_cpp.llama_model_default_params()
        adjust(model_params)
        model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self._api = llama_cpp
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.n_ctx, params.n_batch = sequences, tokens, 2048
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def tokenize(self, text: bytes) -> list[int]:
        ids = (self._api.llama_token * 256)()
        n = self._api.llama_tokenize(self._vocab, text, len(text), ids, 256, False, True)
        return list(ids[:n])

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def forget(self, sequence: int, position: int) -> None:
        """What a sequence holds from a position on."""
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_seq_rm(memory, sequence, position, -1)

    def run(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Rows (token, position, sequence, wanted) as one batch; the greedy tokens of the wanted ones."""
        import numpy as np

        api, batch, size = self._api, self._batch, (self._api.llama_vocab_n_tokens(self._vocab),)
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, wanted
        if api.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not compute a batch")
        return [
            int(np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, row), size).argmax())
            for row, (_, _, _, wanted) in enumerate(rows)
            if wanted
        ]


def llama_cpp_streams(
    *, threads: int, counts: Sequence[int], new_tokens: int, repeat: int
) -> list[dict[str, Any]]:
    """llama.cpp as its server runs several streams: one batch of a token of each sequence a step, greedy."""
    model = LlamaCpp(str(MODEL), threads, max(counts), max(counts) * 256)

    def streams(count: int, new_tokens: int) -> dict[str, float]:
        model.clear()
        began = time.perf_counter()
        lengths, tokens = [], []
        for number in range(count):
            ids = model.tokenize(_chat(question(number)))
            last = len(ids) - 1
            tokens += model.run([(token, at, number, at == last) for at, token in enumerate(ids)])
            lengths.append(len(ids))
        prefilled = time.perf_counter()
        for step in range(new_tokens - 1):
            tokens = model.run([(tokens[n], lengths[n] + step, n, True) for n in range(count)])
        ended = time.perf_counter()
        return {
            "aggregate_tokens_per_s": count * (new_tokens - 1) / (ended - prefilled),
            "with_prefill_tokens_per_s": count * new_tokens / (ended - began),
        }

    streams(1, 4)
    return [
        {"streams": count, "runs": [streams(count, new_tokens) for _ in range(repeat)]} for count in counts
    ]


def _chat(text: str) -> bytes:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n".encode()
