"""Text to token ids and back, over the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ...swarm.confined.process import Bounds, ConfinedProcess, EndedError
from ...swarm.errors import CheckpointError, PromptTooLongError, UsageError
from ...swarm.terminal_text import one_line
from ..chat.control_tokens import ControlTokens
from ..chat.template_set import ChatTemplates, TemplateSource, texts_of
from .check import TokenReach, takes_linear_time, token_reach
from .end_tokens import looks_like_a_mark
from .program import TextEncoder
from .token_bytes import TokenBytes

_UNFINISHED = "\ufffd"
"""The character that a decoder puts for bytes that are not a whole character yet."""
_MAX_HELD = 16
"""At most this many tokens are held back for a character to become whole. No character needs more than 4, and
wrong bytes never become one."""

CHECKED_CHARACTERS = 64 * 1024
"""A text that may be too long is tokenized in parts of this many characters to see whether it is."""
CUT_TOKENS = 64
"""The cuts between them may add at least this many tokens to the count."""

DECODED_AT_ONCE = 1024
"""This many ids are decoded without letting other threads go on, which takes some tenths of a millisecond."""

ENCODE_BOUNDS = Bounds(memory_bytes=2 * 2**30, cpu_s=5)
"""The bounds of encoding one text, or a part of it, if that may take more than linear time."""
_PROGRAM = Path(__file__).with_name("program.py")


class Tokenizer:
    """``eos_ids``: tokens that end a generation. ``vocab_size``: ids are below it. ``origin``: the model's
    file or folder, for messages."""

    def __init__(
        self,
        backend: Backend,
        *,
        eos_ids: Iterable[int],
        special_tokens: Mapping[str, str],
        chat_template: TemplateSource | None,
        origin: str = "the model",
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.eos_ids = frozenset(eos_ids)
        self.vocab_size: int = backend.get_vocab_size()
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self._origin = origin
        self._template: ChatTemplates | None = None
        self._token_bytes = TokenBytes(backend)
        markers = self._markers()
        self._encoder = TextEncoder(backend, markers)
        self._confined: ConfinedProcess | None = None
        """The process that encodes texts, if encoding may take more than linear time."""
        if not takes_linear_time(backend, origin):
            opening = {"content": backend.to_str(), "markers": markers}
            self._confined = ConfinedProcess(_PROGRAM, ("tokenizers",), opening, ENCODE_BOUNDS)

    def encode(
        self,
        text: str,
        add_special: bool = True,
        *,
        literal: Sequence[tuple[int, int]] = (),
        most: int | None = None,
    ) -> list[int]:
        """``add_special``: with the begin-of-text token where the model wants one.

        Special tokens written out in ``text`` become the tokens, as in transformers, but not in the ranges
        ``literal`` (start, end; in order, apart), nor where they reach into one: there they are encoded as
        any other text, and so are tokens that the chat template writes or that end an answer. A text of far
        more than ``most`` tokens is refused before all of it is tokenized: PromptTooLongError. Other threads
        run meanwhile.
        """
        if most is not None:
            self._check_length(text, most)
        return self._encode(text, add_special, literal)

    def _markers(self) -> list[str]:
        """Added tokens that steer the model though they are not marked as special."""
        template = texts_of(self.chat_template)
        return [
            token.content
            for index, token in self._backend.get_added_tokens_decoder().items()
            if not token.special
            and (index in self.eos_ids or (looks_like_a_mark(token.content) and token.content in template))
        ]

    @cached_property
    def _reach(self) -> TokenReach | None:
        return token_reach(self._backend)

    def _check_length(self, text: str, most: int) -> None:
        """Cut anywhere, a text has a few tokens more or less at each cut: the last quarter is not refused
        here."""
        if len(text) <= 4 * most:
            return
        if self._reach is not None and (fewest := self._reach.fewest(text)) > most:
            raise PromptTooLongError(
                f"the prompt has {fewest} tokens or more, but the model's context holds {most}, answer "
                "included",
                hint="Shorten the prompt.",
            )
        counted = 0
        for at in range(0, len(text), CHECKED_CHARACTERS):
            counted += len(self._encode(text[at : at + CHECKED_CHARACTERS], add_special=False, literal=()))
            if counted > most + most // 4 + CUT_TOKENS:
                raise PromptTooLongError(
                    f"the prompt has over {most + most // 4} tokens, but the model's context holds {most}, "
                    "answer included",
                    hint="Shorten the prompt.",
                )

    def _encode(self, text: str, add_special: bool, literal: Sequence[tuple[int, int]]) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, as a shell gives for bytes that are no UTF-8
            raise UsageError("the text holds characters that are not valid Unicode") from None
        try:
            if self._confined is not None:
                request = {"text": text, "add_special": add_special, "literal": list(literal)}
                return list(self._confined.ask(request))
            return self._encoder.encode(text, add_special, literal)
        except EndedError as error:
            reason = str(error)
        except BaseException as error:
            if not is_failure(error):
                raise
            reason = one_line(str(error))
        raise CheckpointError(
            f"the tokenizer of {self._origin} failed on this text: {reason}",
            hint="Shorten the text, or get the model from another source.",
        )

    @property
    def is_confined(self) -> bool:
        """Whether encoding may take long: it happens in a process that is ended then."""
        return self._confined is not None

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        try:
            if len(ids) > DECODED_AT_ONCE:
                return self._backend.decode_batch([list(ids)], skip_special_tokens=skip_special)[0]
            return self._backend.decode(list(ids), skip_special_tokens=skip_special)
        except BaseException as error:
            if not is_panic(error):
                raise
        raise CheckpointError(
            f"the tokenizer of {self._origin} fails on tokens of its own",
            hint="Get the model from another source.",
        )

    def stream(self, skip_special: bool = True, *, after: Sequence[int] = ()) -> Detokenizer:
        """``after``: ids that come before, such as a prompt's: a text that goes on keeps the space between
        words, which SentencePiece leaves out at the beginning of a text."""
        return Detokenizer(self, skip_special, self._whole_end(after))

    def _whole_end(self, ids: Sequence[int]) -> list[int]:
        """The fewest last ids that are whole characters; none if that takes too many."""
        for count in range(1, min(len(ids), _MAX_HELD) + 1):
            end = list(ids[-count:])
            if _UNFINISHED not in self.decode(end):
                return end
        return []

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``, special tokens' roles and chat template left out."""
        return self._backend.to_str()

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes that a token stands for, half characters included; a special one's spelling."""
        return self._token_bytes.of(token)

    def has_vocabulary_of(self, other: Tokenizer) -> bool:
        """Whether each token that both have has the same id, and neither lacks many of the other's."""
        mine, theirs = self._backend.get_vocab(), other._backend.get_vocab()
        if any(theirs.get(token, index) != index for token, index in mine.items()):
            return False
        return len(mine.keys() & theirs.keys()) >= 0.99 * max(len(mine), len(theirs))

    def special_ids(self) -> frozenset[int]:
        """Tokens that are not text: they steer the model, and ``decode`` leaves them out."""
        return frozenset(self.hidden_texts)

    @cached_property
    def hidden_texts(self) -> Mapping[int, str]:
        """What the special tokens spell, by token."""
        added = self._backend.get_added_tokens_decoder()
        return {token: entry.content for token, entry in added.items() if entry.special}

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def chat_variables(self) -> frozenset[str]:
        """Names that the chat templates read, such as ``tools`` where one can show some."""
        return self.template.variables if self.has_chat_template else frozenset()

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        most: int | None = None,
        **more: Any,
    ) -> list[int]:
        """The chat as token ids. The template writes begin-of-text itself where the model wants it. Control
        tokens are those that the template writes: where the chat's own texts spell one, it is text."""
        text, literal = self.template.render_apart(
            messages, add_generation_prompt=add_generation_prompt, **more
        )
        return self.encode(text, add_special=False, literal=literal, most=most)

    def close(self) -> None:
        """End the processes that render chats and encode texts, if there are any; they start anew if they are
        needed."""
        for process in (self._template, self._confined):
            if process is not None:
                process.close()

    @property
    def template(self) -> ChatTemplates:
        """What renders chats. Raises UsageError where the model has none."""
        if self.chat_template is None:
            raise UsageError(
                "this model has no chat template", hint="Send plain text instead (--raw on the command line)."
            )
        if self._template is None:
            control = ControlTokens(self.hidden_texts.values(), self._markers())
            self._template = ChatTemplates(self.chat_template, self.special_tokens, self._origin, control)
        return self._template


class Detokenizer:
    """Ids one by one to pieces of text; pieces hold whole characters only, and join to the whole text."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._hidden = tokenizer.hidden_texts if skip_special else {}
        # A window of ids: [context | held back]. The context decides how the next is spelled (leading space).
        self._ids = list(context)
        self._n_context = len(self._ids)
        self._context_text = self._decode(self._ids)

    def push(self, token: int) -> str:
        """The text that ``token`` completes; may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        held = len(self._ids) - self._n_context
        if text.endswith(_UNFINISHED) and held < _MAX_HELD:
            return ""
        if len(text) <= len(self._context_text) and held < _MAX_HELD:
            return ""  # a special token that is left out, or a space that a decoder strips for now
        return self._advance(text)

    def hidden(self, token: int) -> str:
        """What a token spells that the text leaves out; "" for any other."""
        return self._hidden.get(token, "")

    def flush(self) -> str:
        """What is still held back: the rest of a character that was never finished."""
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        piece = text[len(self._context_text) :]
        self._ids = self._ids[self._n_context :]
        self._n_context = len(self._ids)
        self._context_text = self._decode(self._ids)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special)


def is_failure(error: BaseException) -> bool:
    """Whether the tokenizers library reports a failure: by a plain Exception, or by a panic, which is not an
    Exception and so is not caught as one."""
    return type(error) is Exception or is_panic(error)


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library failed by a panic, which is not an Exception and so is not caught as
    one."""
    return type(error).__module__ == "pyo3_runtime"
