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


def llama_cpp_streams(
    *, threads: int, counts: Sequence[int], new_tokens: int, repeat: int
) -> list[dict[str, Any]]:
    """llama.cpp as its server runs several streams: one batch of a token of each sequence a step, greedy."""
    import ctypes

    import llama_cpp
    import numpy as np

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_no_log := llama_cpp.llama_log_callback(lambda *_: None), ctypes.c_void_p())
    model = llama_cpp.llama_model_load_from_file(str(MODEL).encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    params = llama_cpp.llama_context_default_params()
    params.n_seq_max = max(counts)
    params.n_ctx = max(counts) * 256
    params.n_batch = 2048
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def tokenize(text: bytes) -> list[int]:
        ids = (llama_cpp.llama_token * 256)()
        n = llama_cpp.llama_tokenize(vocab, text, len(text), ids, 256, False, True)
        return list(ids[:n])

    def run(rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Rows (token, position, sequence, wanted) as one batch; the greedy tokens of the wanted ones."""
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, wanted
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not compute a batch")
        return [
            int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, row), (n_vocab,)).argmax())
            for row, (_, _, _, wanted) in enumerate(rows)
            if wanted
        ]

    def streams(count: int, new_tokens: int) -> dict[str, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        began = time.perf_counter()
        lengths, tokens = [], []
        for number in range(count):
            ids = tokenize(_chat(question(number)))
            last = len(ids) - 1
            tokens += run([(token, at, number, at == last) for at, token in enumerate(ids)])
            lengths.append(len(ids))
        prefilled = time.perf_counter()
        for step in range(new_tokens - 1):
            tokens = run([(tokens[n], lengths[n] + step, n, True) for n in range(count)])
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
