"""Which calls into C let the interpreter's other threads go on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import torch

from swarm_node.client.decoding.sampling import Sampler, SamplingParams
from swarm_node.client.drafting.prompt_lookup import PromptLookup
from swarm_node.client.gateway.openai.requests import read_chat, read_completion
from swarm_node.client.guided.guide import Guide
from swarm_node.client.guided.token_guide import Guides
from swarm_node.client.http.body import parse_json
from swarm_node.client.routing.prefix import PageChain
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.codecs.kinds import BF16, INT8

from ..lab.command_line import script_parser
from ..lab.prompts import MODEL

DESCRIPTION = """\
Each call of the client and the gateway that may take long runs in a thread of its own, on the largest input
that the gateway lets through. Beside it another thread looks at the clock every millisecond. Printed are how
long the call took, and the longest time that the other thread could not run: with the interpreter's lock kept
both are the same, and pure Python stops it for 5 ms at a time. Best of several rounds: other processes only
add to it.
"""
BEAT_S = 0.001
BODY = 2 * 2**20
LONG = 100_000
"""Tokens of a long prompt."""

Call = Callable[[], object]


def main() -> int:
    parser = script_parser("study interpreter_lock", DESCRIPTION)
    parser.add_argument("--rounds", type=int, default=3, help="of each call (%(default)s)")
    parser.add_argument("--only", default="", help="calls whose name has this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'call':58} {'takes':>9} {'stops':>9}")
    for name, call in calls():
        if options.only in name:
            rounds = [measured(call) for _ in range(options.rounds)]
            took, stopped = min(rounds)[0], min(stopped for _, stopped in rounds)
            print(f"{name:58} {took * 1000:6.1f} ms {stopped * 1000:6.1f} ms", flush=True)
    return 0


def measured(call: Call) -> tuple[float, float]:
    """Seconds that ``call`` takes, and the longest for which another thread could not run meanwhile."""
    over, beating = threading.Event(), threading.Event()
    longest = 0.0

    def beat() -> None:
        nonlocal longest
        last = time.perf_counter()
        beating.set()
        while not over.is_set():
            time.sleep(BEAT_S)
            now = time.perf_counter()
            longest = max(longest, now - last - BEAT_S)
            last = now

    beater = threading.Thread(target=beat)
    beater.start()
    beating.wait()
    began = time.perf_counter()
    call()
    took = time.perf_counter() - began
    over.set()
    beater.join()
    return took, longest


def calls() -> Iterator[tuple[str, Call]]:
    yield from _bodies()
    yield from _tokenizer()
    yield from _prompts()
    yield from _guides()


def _bodies() -> Iterator[tuple[str, Call]]:
    def chat(content: str) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()

    texts = {
        "plain text": chat("ab " * (BODY // 3)),
        "escapes": b'{"messages":[{"role":"user","content":"' + b"\\u00e9" * (BODY // 6) + b'"}]}',
        "4096 messages": json.dumps({"messages": [{"role": "user", "content": "x" * 470}] * 4096}).encode(),
        "4096 messages of parts": json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 6}] * 4096}
        ).encode(),
        "brackets in strings": b'{"a":[' + b'"[[[[[[["' + b',"[[[[[[["' * (BODY // 11) + b"]}",
    }
    for name, data in texts.items():
        yield f"json.loads, 2 MB: {name}", lambda data=data: json.loads(data)
        yield f"read a body, 2 MB: {name}", lambda data=data: _read(data, read_chat)
    ids = json.dumps({"prompt": [12345] * (BODY // 7)}).encode()
    yield "json.loads, 2 MB: token ids", lambda: json.loads(ids)
    yield "read a body, 2 MB: token ids", lambda: _read(ids, read_completion)
    numbers = b'{"prompt":[' + b"0.1234567890123456789e-30," * (BODY // 27) + b"1]}"
    yield "json.loads, 2 MB: long floats", lambda: json.loads(numbers)
    digits = b'{"prompt":[' + b",".join([b"9" * 4300] * (BODY // 4301)) + b"]}"
    yield "json.loads, 2 MB: numbers of 4300 digits", lambda: json.loads(digits)
    yield "read a body, 2 MB: numbers of 4300 digits", lambda: _read(digits, read_completion)
    for count in (BODY // 11, 2**16):
        names = b"{" + b",".join(b'"%d":0' % number for number in range(count)) + b"}"
        yield f"json.loads: {count} names", lambda names=names: json.loads(names)
        yield f"read a body: {count} names", lambda names=names: _read(names, read_chat)
    whitespace = b"[" + b" " * BODY + b"]"
    yield "json.loads, 2 MB: white space", lambda: json.loads(whitespace)


def _read(data: bytes, read: Callable[[object], object]) -> None:
    try:
        read(parse_json(data))
    except Exception:  # noqa: BLE001 - being refused takes time, too
        pass


def _tokenizer() -> Iterator[tuple[str, Call]]:
    tokenizer: Any = open_checkpoint(str(MODEL)).tokenizer()
    backend = tokenizer._backend
    texts = {
        "words": "ab " * (BODY // 3),
        "one letter": "a" * BODY,
        "spaces": " " * BODY,
        "emoji": "\N{PARTY POPPER}" * (BODY // 4),
    }
    for name, text in texts.items():
        part = text[: 64 * 1024]
        yield f"tokenizers encode, 64 KiB: {name}", lambda part=part: backend.encode(part)
        yield (
            f"tokenizers encode_batch_fast, 64 KiB: {name}",
            lambda part=part: backend.encode_batch_fast([part]),
        )
        yield f"Tokenizer.encode, 2 MB, refused: {name}", lambda text=text: _refused(tokenizer, text)
    yield "tokenizers encode, 2 MB: words", lambda: backend.encode(texts["words"])
    yield "Tokenizer.encode, 2 MB, taken: words", lambda: tokenizer.encode(texts["words"])
    ids = backend.encode_batch_fast(["word " * LONG])[0].ids[:LONG]
    yield "Tokenizer.decode, 100,000 tokens", lambda: tokenizer.decode(ids)


def _refused(tokenizer: Any, text: str) -> None:
    try:
        tokenizer.encode(text, most=8192)
    except Exception:  # noqa: BLE001
        pass


def _prompts() -> Iterator[tuple[str, Call]]:
    checkpoint = open_checkpoint(str(MODEL))
    head = load_client_model(checkpoint, LoadOptions())
    ids = [number * 7919 % 40_000 for number in range(LONG)]
    yield "embedding of 8192 tokens (hidden 576)", lambda: head.embed(ids[:8192])
    yield "page names of 100,000 tokens", lambda: PageChain(b"x" * 32).digests(ids)
    x = np.random.default_rng(0).standard_normal((1024, 4096), np.float32)
    for codec in (INT8, BF16):
        yield f"codecs.encode {codec.name}, 1024 tokens of 4096", lambda codec=codec: codec.encode(x)
    yield "prompt lookup of 100,000 tokens", lambda: PromptLookup(ids)
    params = SamplingParams(temperature=1.0, repetition_penalty=1.1)
    yield "Sampler with penalties, 100,000 tokens", lambda: Sampler(params, ids)
    yield "msgpack, 2 MB of bytes", lambda: msgpack.packb({"x": b"x" * BODY})
    yield "numpy copy of 64 MiB", lambda: np.ones(2**23).copy()


def _guides() -> Iterator[tuple[str, Call]]:
    import asyncio

    checkpoint = open_checkpoint(str(MODEL))
    tokenizer: Any = checkpoint.tokenizer()
    vocab_size = checkpoint.config.vocab_size
    properties = {f"name{number}": {"type": "string", "maxLength": 40} for number in range(300)}
    schema = Guide("json_schema", {"type": "object", "properties": properties})
    words = Guide("regex", "|".join(f"word{number}[a-z]*" for number in range(3000)))
    for name, guide in (("300 properties", schema), ("3000 alternatives", words)):
        guides = Guides(tokenizer, vocab_size)
        asyncio.run(guides.prepare())
        yield f"llguidance compile here: {name}", lambda guides=guides, guide=guide: guides._compile(guide)
        opened = asyncio.run(guides.open(guide))
        yield f"llguidance deep_copy: {name}", lambda opened=opened: opened._matcher.deep_copy()
        yield f"llguidance mask: {name}", lambda opened=opened: opened.allowed()
        guides.close()
