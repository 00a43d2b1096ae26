"""The client for programs without an event loop, and for those that have one and want no second client."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack, cast

import numpy as np

from ..swarm.types import ModelRef
from .async_model import AsyncSwarmModel
from .background import BackgroundLoop
from .connecting import ClientOptions, ConnectOptions, OnceOptions, part
from .generation import Generation
from .params import GenerateOptions, Prompt
from .streams import BridgedTextStream, SyncTextStream

if TYPE_CHECKING:
    from ..shards.tokenizer.tokenizer import Tokenizer


class SwarmModel:
    """A large language model that a swarm of peers runs together.

        from swarm_node.client import SwarmModel

        with SwarmModel.connect(model="SmolLM2-135M-Instruct.Q4_1.gguf", initial_peers=["/ip4/..."]) as model:
            print(model.generate("What is the capital of France?"))
            for piece in model.stream("Tell me a story.", max_new_tokens=200, temperature=0.7, seed=1):
                print(piece, end="", flush=True)

    This machine holds embedding, final norm and head; the blocks are the peers'. When a peer fails in the
    middle of an answer, another takes over and the answer goes on with the same tokens.

    A **prompt** is a text, a list of chat messages (``[{"role": "user", "content": "..."}]``) or a list of
    token ids. A text becomes one user message of the model's chat template, where the model has one.

    **Options** of ``generate``, ``stream`` and their twins, all optional and given by name:

    ``max_new_tokens`` (256)
        The answer ends after this number of tokens, or earlier at the end of the model's context.
    ``temperature`` (0)
        0 is greedy: always the most likely token. 1 draws from the model's own distribution.
    ``top_k`` (0, off)
        Draw among the k most likely tokens only.
    ``top_p`` (1, off)
        Draw among the most likely tokens that together reach this probability.
    ``min_p`` (0, off)
        Draw among the tokens at least this fraction as likely as the most likely one.
    ``repetition_penalty`` (1, off)
        Above 1 makes tokens of prompt and answer less likely to come again.
    ``frequency_penalty``, ``presence_penalty`` (0, off)
        Taken off a token's logit for each time that the answer has it, or once if it does; -2 to 2.
    ``logit_bias`` (none)
        Token id → what is added to its logit, -100 (never) to 100 (always).
    ``seed`` (None)
        The same seed, prompt and options give the same answer.
    ``stop`` (none)
        A text, or several: the answer ends before the first that appears.
    ``ignore_eos`` (False)
        Go on after an end-of-text token, up to ``max_new_tokens``.
    ``stop_token_ids`` (none)
        Tokens that end the answer, too, also with ``ignore_eos``.
    ``skip_special_tokens`` (True)
        Leave control tokens out of the text.
    ``speculate`` ("auto")
        Let one pass through the swarm check several guesses of the next tokens, where that is measured to be
        faster; the answer is the same. "off" is plain decoding.
    ``raw`` (False)
        Send a text as it is, without the chat template. Control tokens spelled out in it are such; not with
        "text", nor in chats.
    ``logprobs`` (None, off)
        Log-probability of each token, and of this number of most likely ones (0 to 20), in
        ``Generation.logprobs`` and the stream's events: of the model's own distribution, before anything
        above changes it.
    ``guide`` (None)
        What the answer must look like: a ``Guide``, such as ``Guide("json_schema", {...})``. Needs the extra
        ``guided``. An answer that ``max_new_tokens`` ends is not complete.
    ``guide_start`` (None, at once)
        When the guide begins: a ``GuideStart``, such as one that lets the model think before.

    ``on_wait`` (None)
        Called with a ``Waiting`` about twice a second while the answer waits for blocks that nobody serves
        (``missing``, ``seconds_left``, ``text``), and with None when it goes on; from another thread.

    **Errors** are all ``swarm_node.swarm.errors.SwarmError``: UsageError for a wrong option or a prompt
    longer than the context, NoRouteError (a RouteError) when some blocks are served by nobody,
    ModelMismatchError when the swarm serves other weights, BusyError when every peer is full,
    NetworkError's subclasses, and others; ``str(error)`` says what is wrong and ``error.hint`` what to do.

    Methods may be called from several threads, and answers made side by side. ``agenerate``, ``astream`` and
    ``agenerate_detailed`` are for coroutines of any event loop.
    """

    def __init__(self, loop: BackgroundLoop, core: AsyncSwarmModel) -> None:
        """Use ``connect``; or give a client that lives on ``loop``."""
        self._loop = loop
        self._core = core
        self._finalizer = weakref.finalize(self, _shut_down, loop, core)

    @classmethod
    def connect(cls, **options: Unpack[ConnectOptions]) -> Self:
        """Load the client's part of a model and join a swarm that serves it.

        ``model``: a HuggingFace directory or a .gguf file; or the name of a model that is on this machine,
        that the swarm serves, or that is on the HuggingFace hub, looked for in this order; None is the one
        model that the swarm serves. Its weights are those that the peers serve. ``initial_peers``: addresses
        that ``swarm-node bootstrap`` or ``serve`` print; one that answers is enough; without any, peers of
        this LAN are found by mDNS, unless ``mdns`` is False. ``swarm``: the name of the swarm to join,
        ``swarm_key``: the file of its key, ``join``: an invite, which says both. ``pure_python``: never
        start p2pd, also for peers that cannot be dialled otherwise.
        ``wire_codec``: how activations travel: "int8", "bf16", "fp16", "none" for exact float32, or "auto":
        int8 for Llama models, bf16 for all others. ``quantize`` ("auto", "none", "int8",
        "int4"), ``dtype`` ("auto", "float32", "bfloat16", "float16") and ``device`` say how this machine
        holds the head; auto takes the fastest form that loses nothing against the file. ``threads``: CPU
        threads that compute the head. ``wait``: seconds to wait for peers while
        some blocks are served by nobody, here and at each generation; idle nodes are asked for them in any
        case. ``on_progress``: called with a line of text while loading and waiting, from another thread.
        ``prefix_cache``: let peers keep what they computed of a finished chat for a while, so that its next
        turn is fed only what is new. They keep it for this client's PeerID, which is new at each start, under
        names that it makes with its secret ``prefix_salt`` (16 to 64 bytes; None draws one). ``chain``: peers
        pass activations on to each other where they can; False lets every one of them go through this
        machine, which costs a round trip a peer. ``draft``: a small model of the same family (a path, or
        a name on this machine or on the hub), which this machine runs as a whole to guess what comes next, so
        that a trip through the swarm can bring several tokens. Without one, guesses are taken from the text
        itself, and made by the block that some models have for this (Qwen3-Next, Qwen 3.5, GLM 4.5 to 5,
        DeepSeek V3 and V3.2): this machine reads it where its files are here or take up to 1 GB, and a
        quarter of the free memory holds it. "off": from the text alone.
        ``allow_sideband``: ask a model whose rows tell every hop which tokens they are (Gemma 3n, Gemma 4 E2B
        and E4B) in a swarm without a key, too, where strangers may be among the hops.
        ``on_decision``: called, from another thread, with how one of several models of the name was taken
        (``sentence``, ``ref``, ``reason``, ``is_change``), before anything of it is used.

        Raises UsageError, ModelNotFoundError, CheckpointError, UnsupportedModelError, PeerUnreachableError,
        NotAdmittedError and, with ``wait``, NoRouteError.
        """
        loop = BackgroundLoop()
        try:
            core = loop.run(AsyncSwarmModel.connect(**options))
        except BaseException:
            loop.close()
            raise
        return cls(loop, core)

    @property
    def core(self) -> AsyncSwarmModel:
        """The client underneath, which lives on ``loop``."""
        return self._core

    @property
    def loop(self) -> BackgroundLoop:
        return self._loop

    @property
    def model(self) -> ModelRef:
        """Name and digest of the model; every hop serves the same."""
        return self._core.model

    @property
    def context(self) -> int:
        """The longest sequence that the model can hold, prompt and answer together, in tokens."""
        return self._core.context

    @property
    def chat_sampling(self) -> GenerateOptions:
        """How a chat samples where its user says nothing: as the model's makers advise."""
        return self._core.chat_sampling

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with its chat template."""
        return self._core.tokenizer

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> str:
        """The answer's text. Ctrl-C stops it and frees the peers."""
        return self.generate_detailed(prompt, **options).text

    def generate_detailed(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """The answer with its token ids, finish reason, route, timings and number of repairs."""
        return self._loop.run(self._core.generate_detailed(prompt, **options))

    def embed(self, texts: Sequence[str], *, pooling: str | None = None) -> np.ndarray:
        """Vectors of texts: (texts, hidden) float32, each of length 1; their products are their likeness.
        ``pooling``: "mean" of all tokens, or the "last" token; None: as the model's files say. Raises
        UsageError for a model that is none for embeddings."""
        return self._loop.run(self._core.embed(texts, pooling=pooling))

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> SyncTextStream:
        """An iterator of pieces of the answer, whole characters each, as they are made.

        ``stream.result`` is the Generation, once the iterator is at its end; ``stream.so_far`` is what there
        is of it before, or when it failed, and ``stream.waiting`` what it waits for now. ``stream.close()``
        (or ``with``, or leaving the loop and dropping it) stops the answer and frees the peers at once.
        """
        return SyncTextStream(self._loop, self._core.stream(prompt, **options))

    def streams(self, prompt: Prompt, answers: Sequence[GenerateOptions]) -> list[SyncTextStream]:
        """Several answers to one prompt, which is fed once; each with options of its own, as ``stream`` makes
        it, and all side by side::

            streams = model.streams("A name for a boat:", [{"seed": seed} for seed in range(8)])
            names = ["".join(stream) for stream in streams]
        """
        return [SyncTextStream(self._loop, stream) for stream in self._core.streams(prompt, answers)]

    async def agenerate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> str:
        """``generate`` for a coroutine, in any event loop. Cancelling it frees the peers at once."""
        return (await self.agenerate_detailed(prompt, **options)).text

    async def agenerate_detailed(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """``generate_detailed`` for a coroutine, in any event loop."""
        return await self._loop.submit(self._core.generate_detailed(prompt, **options)).wait()

    def astream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> BridgedTextStream:
        """``stream`` for ``async for``, in any event loop; stop early with ``await stream.aclose()``."""
        return BridgedTextStream(self._loop, self._core.stream(prompt, **options))

    def close(self) -> None:
        """Stop what still runs and leave the swarm. Idempotent; ``with`` does it."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def generate(prompt: Prompt, *, model: str | PathLike[str], **options: Unpack[OnceOptions]) -> str:
    """One answer from the swarm: connect, generate, leave.

        text = generate("What is the capital of France?", model="model.gguf", initial_peers=["/ip4/..."])

    Options are those of ``SwarmModel.connect`` and those of its ``generate``; errors are those of
    ``SwarmModel``. The model is loaded anew by every call: for several prompts keep a ``SwarmModel``.
    """
    with SwarmModel.connect(model=model, **part(options, ClientOptions)) as swarm_model:
        answer = {name: value for name, value in options.items() if name not in ClientOptions.__annotations__}
        return swarm_model.generate(prompt, **cast(GenerateOptions, answer))


def _shut_down(loop: BackgroundLoop, core: AsyncSwarmModel) -> None:
    """At ``close``, when the last reference goes, or when the interpreter ends."""
    if loop.closed:
        return
    try:
        loop.run(core.close())
    finally:
        loop.close()
