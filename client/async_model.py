"""The client for asyncio programs; ``swarm_model`` wraps it for all others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np

from ..swarm.codecs.kinds import kind_row_bytes
from ..swarm.errors import PromptTooLongError, UsageError
from ..swarm.links.pool import LinkPool
from ..swarm.runtime.tasks import all_of, look_at
from ..swarm.timeouts import Patience
from ..swarm.transport.dial_guard import DialGuard
from ..swarm.types import ModelRef
from .connecting import ConnectOptions, SessionOptions, check_session, checked_entry, open_models, part
from .decoding.head_batch import HeadBatcher
from .embedding import Embedding, embed_tokens, pooling_for
from .generation import Generation, GenerationRun
from .guided.token_guide import Guides
from .hops.edge_codecs import EdgeCodecs
from .hops.plan import RouteSettings, SessionSettings
from .local_model import LocalModel, OnProgress
from .model_facts import ModelFacts
from .network import ClientNetwork
from .params import GenerateOptions, GenerationParams, Prompt, Raw, chat_sampling, fit_context
from .prompt_reader import PromptReader
from .routing.prefix import PrefixKey, new_salt
from .routing.route_finder import Need
from .routing.route_memory import RouteMemory
from .routing.route_wait import OnWaiting, Waiting, WaitLimits
from .routing.router import Router
from .session.beginnings import Beginnings
from .session.scout import Scout
from .session.shared_prompt import SharedPrompt
from .session.swarm_session import SwarmSession
from .streams import TextStream

if TYPE_CHECKING:
    from ..shards.tokenizer.tokenizer import Tokenizer


EMBEDDINGS_AT_ONCE = 8
"""Texts of one call that are computed side by side: their steps then share batches on the hops."""


class AsyncSwarmModel:
    """``SwarmModel`` for a program with an event loop: the same methods, to be awaited.

        async with await AsyncSwarmModel.connect(model=..., initial_peers=[...]) as model:
            async for piece in model.stream("What is the capital of France?"):
                print(piece, end="")

    Generations may run side by side; each has its own session on every hop. Use it in one event loop.
    The arguments of every method are those of ``SwarmModel``'s.
    """

    def __init__(
        self,
        local: LocalModel,
        network: ClientNetwork,
        *,
        wire_codec: str = "auto",
        wait: float = 0.0,
        on_progress: OnProgress | None = None,
        patience: Patience | None = None,
        router: Router | None = None,
        prefix_cache: bool = True,
        prefix_salt: bytes | None = None,
        chain: bool = True,
    ) -> None:
        """Over a network and a model that are open already; most callers want ``connect``."""
        check_session(wire_codec=wire_codec, wait=wait, prefix_salt=prefix_salt)
        self._local = local
        self._network = network
        self._limits = WaitLimits(missing_s=wait)
        self._on_progress = on_progress
        self._chain = chain
        self._salt = (prefix_salt or new_salt()) if prefix_cache else None
        self._memory = RouteMemory() if prefix_cache else None
        self._beginnings = Beginnings() if prefix_cache else None
        self._links = LinkPool(
            network.transport, local.ref, agent=_agent(), patience=patience, guard=DialGuard(for_client=True)
        )
        insists = wire_codec != "auto"
        self._codecs = EdgeCodecs(
            wire_codec if insists else local.wire_codec,
            insists=insists,
            failed=local.failed,
            tables=local.scales,
            offers=self._links.offer_of,
            reader=local.reader,
            embed=local.head.embed,
        )
        self._heads = HeadBatcher(local.head)
        self._guides = Guides(local.tokenizer, local.vocab_size)
        self._reader = PromptReader(local.tokenizer, vocab_size=local.vocab_size, context=local.context)
        self._runs: set[GenerationRun] = set()
        self._noting: asyncio.Future[None] | None = None  # that the model has answered
        self._closed = False
        self._router = router or Router(
            network.directory,
            local.ref,
            local.boundaries,
            partial(kind_row_bytes, self._codecs.wanted),
            demand=network.demand,
        )
        self._scout = Scout(
            self._links, self._router, local.head.embed, self._codecs.wanted, local.boundaries
        )

    @classmethod
    async def connect(cls, **options: Unpack[ConnectOptions]) -> Self:
        """Load the client's part of a model and join the swarm; options and errors as
        ``SwarmModel.connect``."""
        entry = checked_entry(options)
        network, (local,) = await open_models([options.get("model")], entry, options)
        try:
            self = cls(local, network, **part(options, SessionOptions))
        except BaseException:
            await network.close()
            local.close()
            raise
        try:
            await self.read_announcements()
            if options.get("wait"):
                await self.wait_for_route()
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def model(self) -> ModelRef:
        """Name and digest of the model; every hop serves the same."""
        return self._local.ref

    @property
    def chat_sampling(self) -> GenerateOptions:
        """How a chat samples where its user says nothing: as the model's makers advise."""
        return chat_sampling(self._local.facts.sampling)

    @property
    def facts(self) -> ModelFacts:
        """What people ask of it: its kind and its size."""
        return self._local.facts

    @property
    def context(self) -> int:
        """The longest sequence that the model can hold, prompt and answer together, in tokens."""
        return self._local.context

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back, and the chat template."""
        return self._local.tokenizer

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._local.vocab_size

    @property
    def reader(self) -> PromptReader:
        """Reads prompts beside the event loop."""
        return self._reader

    @property
    def local(self) -> LocalModel:
        """This machine's part of the model."""
        return self._local

    async def read_announcements(self) -> None:
        """Know who serves the model, as far as anybody tells. From then on it does not matter whether the
        initial peers are there."""
        await self._router.read_announcements()

    async def wait_for_route(self) -> None:
        """Return once every block is served, for ``wait`` seconds at most. Raises NoRouteError."""
        await self._router.plan(Need(kv_tokens=1), limits=self._limits, on_wait=partial(self._tell, None))

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> str:
        """The answer's text."""
        return (await self.generate_detailed(prompt, **options)).text

    async def generate_detailed(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """The answer with its token ids, route and timings."""
        async with self.stream(prompt, **options) as stream:
            return await stream.finish()

    async def embed(self, texts: Sequence[str | Sequence[int]], *, pooling: str | None = None) -> np.ndarray:
        """Vectors of texts, or of token ids: (texts, hidden) float32, each of length 1. ``pooling``: "mean"
        of all tokens, or the "last" token; None: as the model's files say. Raises UsageError for a model that
        is none for embeddings, and what ``generate`` raises."""
        vectors: dict[int, np.ndarray] = {}
        slots = asyncio.Semaphore(EMBEDDINGS_AT_ONCE)

        async def embed(number: int, text: str | Sequence[int]) -> None:
            async with slots:
                vectors[number] = (await self.embedding(text, pooling=pooling)).vector

        await all_of(*(embed(number, text) for number, text in enumerate(texts)))
        return np.array([vectors[number] for number in range(len(texts))], np.float32)

    async def embedding(self, text: str | Sequence[int], *, pooling: str | None = None) -> Embedding:
        """The vector of one text, as ``embed``."""
        self._check_open()
        local = self._local
        wanted = pooling_for(pooling, local.facts.pooling, local.ref.name)
        ids = await self._reader.ids(text, raw="text")
        if len(ids) > local.context:
            raise PromptTooLongError(
                f"the text has {len(ids)} tokens; the model holds {local.context}", hint="Cut it into parts."
            )
        session = self.session(len(ids), prompt_tokens=len(ids))
        try:
            return Embedding(await embed_tokens(session, local.head, ids, wanted), len(ids))
        finally:
            session.close()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> TextStream:
        """The answer in pieces of whole characters, as they are made; ``result`` when it is complete.

        The hops wait while the caller is busy with a piece. Options are checked here, the prompt when the
        first piece is asked for: reading it may take a while.
        """
        (stream,) = self.streams(prompt, [options])
        return stream

    def streams(self, prompt: Prompt, answers: Sequence[GenerateOptions]) -> list[TextStream]:
        """Several answers to one prompt, each with options of its own and as ``stream`` makes it.

        The prompt is fed once, when the first piece of any is asked for; the others go on from there on the
        same hops.
        """
        many = [GenerationParams.of(options, vocab_size=self._local.vocab_size) for options in answers]
        raw: set[Raw] = {options.get("raw", False) for options in answers}
        if len(raw) > 1:
            raise UsageError(
                "raw is the prompt's, not an answer's", hint="Give it to all answers, or to none."
            )
        self._check_open()
        shared = SharedPrompt(lambda: self._reader.ids(prompt, raw=next(iter(raw), False)))
        return [TextStream(partial(self._begin, shared, params)) for params in many]

    async def _begin(self, prompt: SharedPrompt, params: GenerationParams) -> GenerationRun:
        self._check_open()
        local = self._local
        ids = await prompt.ids()
        new_tokens = fit_context(len(ids), params.max_new_tokens, local.context)
        session = self.session(len(ids) + new_tokens, prompt_tokens=len(ids), on_wait=params.on_wait)
        guide = params.guide
        run = GenerationRun(
            ids,
            params.limited_to(new_tokens),
            model=local.ref,
            heads=self._heads,
            detokenizer=local.tokenizer.stream(params.skip_special_tokens, after=ids),
            eos_ids=local.tokenizer.eos_ids,
            session=session,
            feed=prompt.feed,
            guide=None if guide is None else lambda: self._guides.open(guide, params.guide_start),
            draft_model=local.draft,
            on_end=self._ended,
        )
        self._runs.add(run)
        return run

    def _ended(self, run: GenerationRun) -> None:
        self._runs.discard(run)
        answered = self._local.answered
        if run.result is not None and answered is not None and self._noting is None:
            self._noting = asyncio.ensure_future(asyncio.to_thread(answered))
            self._noting.add_done_callback(look_at)

    def session(
        self, max_tokens: int, *, prompt_tokens: int = 1, on_wait: OnWaiting | None = None
    ) -> SwarmSession:
        """A sequence in the swarm, of ``max_tokens`` at most: feed it token ids, go back, fork it; ``close``
        frees the hops. ``prompt_tokens``: of how many that will be fed at first, for planning its route.
        ``on_wait`` is told of its waiting."""
        self._check_open()
        local, router = self._local, self._router
        if local.reader is not None:
            local.reader.look()
        return SwarmSession(
            local.head,
            self._links,
            router,
            self._scout,
            RouteSettings(
                SessionSettings(local.boundaries, max_tokens, local.embedding_rms, local.keeps_states),
                self._codecs,
                router if self._chain else None,
                prefix=PrefixKey(self._salt, router.model.digest) if self._salt is not None else None,
            ),
            Need(max_tokens, prompt_tokens, max(1, max_tokens - prompt_tokens)),
            limits=self._limits,
            on_wait=partial(self._tell, on_wait),
            memory=self._memory,
            beginnings=self._beginnings,
        )

    async def prepare_guides(self) -> None:
        """Build what guided answers need now, not when the first is asked for. Does nothing where llguidance
        is missing."""
        await self._guides.prepare()

    async def close(self) -> None:
        """Stop what still runs, leave the swarm, give the model's files back. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for run in list(self._runs):
            run.close()
        self._guides.close()
        self._reader.close()
        if self._noting is not None:
            await asyncio.wait([self._noting])
        try:
            await self._scout.close()
            await self._links.close()
            await self._router.close()
            await self._network.close()
        finally:
            await self._heads.close()  # its thread reads the model's files
            self._local.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the client is closed", hint="Connect again.")

    def _tell(self, on_wait: OnWaiting | None, waiting: Waiting | None) -> None:
        if self._on_progress is not None and waiting is not None:
            self._on_progress(waiting.text)
        if on_wait is not None:
            on_wait(waiting)


def _agent() -> str:
    try:
        return f"swarm-node/{version('swarm-node')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "swarm-node"
