"""Answers questions about vocabularies with llama.cpp; ``scripts/tokenizers`` runs it in an environment that
has llama-cpp-python. Questions and answers are JSON, one a line."""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp

said: list[str] = []


@llama_cpp.llama_log_callback
def listen(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    said.append(text.decode(errors="replace"))


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """``model``: a GGUF file; ``pre``: in place of the name in it; ``texts``; ``special``: whether special
    tokens in them are recognised. Replies with ``ids`` of each text, ``ends`` and ``add_bos``."""
    said.clear()
    overrides = {"tokenizer.ggml.pre": question["pre"]} if question.get("pre") else None
    try:
        model = llama_cpp.Llama(question["model"], vocab_only=True, verbose=False, kv_overrides=overrides)
    except (ValueError, AssertionError):
        errors = [line for line in said if "error" in line]
        return {"refused": (errors or ["it does not say why"])[0].strip()}
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    ids = [
        model.tokenize(text.encode(), add_bos=False, special=question["special"])
        for text in question["texts"]
    ]
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    ends = [token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
    begins = bool(llama_cpp.llama_vocab_get_add_bos(vocabulary))
    model.close()
    return {"ids": ids, "ends": ends, "add_bos": begins}


def main() -> None:
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
