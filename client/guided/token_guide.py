"""Guides at work: compiled for a vocabulary by llguidance, they say which tokens may come next.

Compiling takes a thread of its own, since it can take a second; one at a time and askers in turn, so that a
flood of hostile grammars takes one core at most, and delays only its sender. Its stack is large: the compiler
is recursive in what it reads. What is compiled here was first compiled in a process that is ended if it takes
too much, crashes, or is not waited for any more.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.confined.asking import ASKING
from ...swarm.confined.process import Bounds, ConfinedProcess, EndedError
from ...swarm.errors import UsageError
from ...swarm.fairness.recent import RecentMap
from ...swarm.fairness.thread import FairThread
from ...swarm.runtime.extras import install_extra
from ...swarm.runtime.heap import trim_heap
from ..decoding.sampling import TokenRule
from .guide import Guide, embedded_schemas
from .guide_start import GuideStart, StartedGuide
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ...shards.tokenizer.tokenizer import Tokenizer

CACHED = 32
"""Compiled guides that are kept: clients use the same few schemas again and again."""
COMPILE_S = 30.0
"""A guide that takes longer is refused, its turn included; with our bounds a second of processor time is
rare."""
BOUNDS = Bounds(memory_bytes=2 * 2**30, cpu_s=5)
"""The bounds of compiling one guide, the address space of the stack included."""
STACK_BYTES = 512 << 20
"""Address space, not memory, for the compiler's stack: a chain of 1200 references overflows the usual 8
MB."""
FREE_S, S_PER_TOKEN = 1.0, 0.005
"""A guide may take FREE_S seconds of processor time in one answer, and S_PER_TOKEN more a token. 0.0001 s a
token is usual."""
WHITESPACE = r"( |\n[ \t]{0,40})?"
"""The whitespace between the parts of JSON. Without a bound a model that is not sure writes spaces for
ever."""

_NAMES = {
    "json_object": "the JSON object",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "lark": "the Lark grammar",
}
_LIMITS = {"step_lexer_fuel": 50_000, "max_items_in_row": 5_000, "max_lexer_states": 50_000}
"""Limits of llguidance, whose defaults let one mask take over a second, or half a gigabyte. The first is four
times less, the second twice more (for schemas of some hundred optional properties)."""


TRIAL = ConfinedProcess(
    Path(__file__).with_name("program.py"),
    ("llguidance",),
    {"limits": _LIMITS, "stack_bytes": STACK_BYTES},
    BOUNDS,
)
"""The process in which every guide is compiled first, for all models of this program."""


class TokenGuide:
    """One answer's guide. Not for several threads at once."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros(-(-vocab_size // 32), np.int32)
        self._vocab_size = vocab_size
        self._spent_s = -FREE_S

    @property
    def is_over(self) -> bool:
        """Nothing may follow: what the guide describes is complete."""
        return bool(self._matcher.is_stopped())

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next; costs far less than ``allowed``."""
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> np.ndarray:
        """Ids (n,), ascending, of the tokens that may come next; at least one.

        Raises UsageError when the guide has become too expensive, or nothing can go on.
        """
        began = thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._spent_s += thread_time() - began - S_PER_TOKEN
        if self._matcher.is_error():
            raise _refused("the guide", self._matcher.get_error())
        if self._spent_s > 0:
            raise UsageError(
                "the guide takes too long to say which tokens may come next",
                hint="Make it less ambiguous: fewer alternatives that begin alike, no nested repetitions.",
            )
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
        ids = np.flatnonzero(bits)
        if not len(ids):
            raise UsageError(
                "no token of the model's vocabulary can continue the text as the guide requires",
                hint="Check that the guide describes text that can be complete.",
            )
        return ids

    def accept(self, token: int) -> None:
        """``token`` was chosen, which ``allows`` or ``allowed`` had said may be."""
        if not self._matcher.consume_token(token):
            raise _refused("the guide", self._matcher.get_error())

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next, as the tokenizer cuts them; none where there is a choice. They may be
        spelled with other tokens, too, and a greedy answer is where the model prefers those."""
        return tuple(self._matcher.compute_ff_tokens())

    def copy(self) -> TokenGuide:
        """As ``TokenRule``: a microsecond or two."""
        return TokenGuide(self._matcher.deep_copy(), self._vocab_size)


class Guides:
    """Compiles guides for one model. Loads llguidance, and builds its tables of the vocabulary, when the
    first guide is opened, or before that by ``prepare``."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """``vocab_size``: the head's; tokens of the tokenizer beyond it cannot be chosen."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._compiled: RecentMap[Guide, asyncio.Task[Any]] = RecentMap(CACHED)
        self._waiting: Counter[asyncio.Task[Any]] = Counter()
        """How many answers wait for each to be compiled."""
        self._vocabulary: Any = None
        self._thread = FairThread("swarm-guides", stack_bytes=STACK_BYTES)

    async def prepare(self) -> None:
        """Build the tables now. Does nothing without llguidance.

        That holds the interpreter for a second or more where the vocabulary is large: a
        server builds them before its first client asks.
        """
        with suppress(UsageError):
            await self._thread.run(self._tables)

    async def open(self, guide: Guide, start: GuideStart | None = None) -> TokenRule:
        """A new answer's guide; ``start``: when it begins, if not at once. Raises UsageError where it cannot
        be compiled, or llguidance is missing."""
        compiled = self._compiled.get(guide)
        if compiled is None:
            compiled = asyncio.create_task(self._thread.run(partial(self._compile, guide)), name="guide")
            self._compiled[guide] = compiled
        self._waiting[compiled] += 1
        try:
            async with asyncio.timeout(COMPILE_S):
                matcher: Any = await asyncio.shield(compiled)
        except TimeoutError:
            raise UsageError(
                f"{_NAMES[guide.kind]} was not compiled within {COMPILE_S:.0f} s",
                hint="Make it simpler; or try again, if many others are being compiled.",
            ) from None
        finally:
            self._leave(guide, compiled)
        if isinstance(matcher, UsageError):
            self._compiled.pop(guide, None)
            raise UsageError(str(matcher), hint=matcher.hint)  # anew: several may wait for the same

        def begin() -> TokenGuide:
            return TokenGuide(matcher.deep_copy(), self._vocab_size)

        return begin() if start is None else StartedGuide(begin, start, self._vocab_size)

    def _leave(self, guide: Guide, compiled: asyncio.Task[Any]) -> None:
        """One that waited waits no more. A guide without a waiter is not compiled any further: else a client
        that asks and leaves, again and again, would keep all guides waiting long after."""
        self._waiting[compiled] -= 1
        if self._waiting[compiled] > 0:
            return
        del self._waiting[compiled]
        if (compiled.cancel() or compiled.cancelled()) and self._compiled.get(guide) is compiled:
            del self._compiled[guide]

    def close(self) -> None:
        """What still waits to be compiled is not. Idempotent."""
        self._thread.close()

    def _tables(self) -> Any:
        """llguidance's own of the vocabulary. In the executor's thread."""
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(_library(), self._tokenizer, self._vocab_size)
            trim_heap()
        return self._vocabulary

    def _compile(self, guide: Guide) -> Any:
        """A matcher to be copied, or the UsageError that says why not."""
        compiled = self._compile_alone(guide)
        if isinstance(compiled, UsageError) and guide.weaker is not None:
            return self._compile(guide.weaker)
        return compiled

    def _compile_alone(self, guide: Guide) -> Any:
        """Its first mask is computed too: most of what is too much shows there."""
        try:
            library, vocabulary = _library(), self._tables()
            grammar = _grammar(library, guide)
            if problem := TRIAL.ask(grammar):
                return _refused(_NAMES[guide.kind], problem)
            if ASKING.get().is_given_up:
                return _refused(_NAMES[guide.kind], "nobody waits for it any more")
            limits = library.LLParserLimits(verbose_errors=False, **_LIMITS)
            matcher = library.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
            if not matcher.is_error():
                TokenGuide(matcher.deep_copy(), self._vocab_size).allowed()
        except UsageError as error:
            return error
        except EndedError as error:
            return _refused(_NAMES[guide.kind], str(error))
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
            return _refused(_NAMES[guide.kind], str(error))
        return _refused(_NAMES[guide.kind], matcher.get_error()) if matcher.is_error() else matcher


def _grammar(library: Any, guide: Guide) -> str:
    """What llguidance compiles."""
    make = library.LLMatcher
    if guide.kind in ("json_object", "json_schema"):
        schema = guide.text if guide.kind == "json_schema" else '{"type":"object"}'
        return str(make.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS))
    if guide.kind == "regex":
        return str(make.grammar_from_regex(guide.text))
    grammar, end = "", 0
    for found in embedded_schemas(guide.text):
        schema = json.dumps({**found.schema, "x-guidance": _JSON_OPTIONS})
        grammar += guide.text[end : found.start] + schema
        end = found.end
    return str(make.grammar_from_lark(grammar + guide.text[end:]))


_JSON_OPTIONS = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}


def _vocabulary(library: Any, tokenizer: Tokenizer, vocab_size: int) -> Any:
    eos = sorted(token for token in tokenizer.eos_ids if token < vocab_size)
    return library.LLTokenizer(Vocabulary(tokenizer, vocab_size), n_vocab=vocab_size, eos_token=eos or None)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UsageError(
            "guided answers need the package llguidance", hint=f"In the checkout: {install_extra('guided')}"
        ) from None
    return llguidance


def _refused(what: str, reason: str) -> UsageError:
    first = " ".join(reason.split("\n<non-verbose", 1)[0].split())
    return UsageError(
        f"{what} cannot be kept to: {first:.300}", hint="Correct it, or ask for something simpler."
    )
