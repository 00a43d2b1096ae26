"""How the answer to a chat is read, and guided, in the dialect of its model."""

from __future__ import annotations

from collections.abc import Sequence

from ....shards.tokenizer.tokenizer import Tokenizer
from ...guided.guide import Guide
from ...guided.guide_start import GuideStart
from ...parsing.dialect import plain
from ...parsing.reader import Reader
from ...reply import dialect_of_chats, prompt_end
from ..requests.guides import made
from ..requests.request import ChatRequest
from ..requests.tools import format_or_call


class ChatReading:
    """``prompt``: of the chat. ``guide``: what the answer must look like, and ``start``: from when on."""

    def __init__(self, tokenizer: Tokenizer, request: ChatRequest, prompt: Sequence[int]) -> None:
        self._request = request
        self._dialect = dialect_of_chats(tokenizer)
        end = prompt_end(tokenizer, prompt)
        self._thinking = self._opened(end)
        self._closed = self._dialect.closed(end)
        self.guide = self._guide()
        self.start = self._start(tokenizer) if self.guide is not None else None

    def reader(self) -> Reader | None:
        """What reads one answer; None where all of it is text."""
        dialect, tools = self._dialect, self._request.tools
        if self._request.sampling.options.get("skip_special_tokens") is False:
            return None
        if not (dialect.thinks or dialect.has_channels or self._thinking or tools.names):
            return None
        return dialect.reader(
            tools.schemas,
            thinking=self._thinking,
            forced=tools.forced is not None,
            guided=self.guide is not None,
            continues=self._request.chat.continued,
            parallel=tools.parallel,
        )

    def _opened(self, end: str) -> str:
        """What ends the thoughts in whose middle the answer begins after a prompt with this ``end``; "" for
        none."""
        chat = self._request.chat
        if chat.continued:
            return self._dialect.continued(chat.messages[-1]["content"])
        return self._dialect.opened(end)

    def _guide(self) -> Guide | None:
        request, dialect = self._request, self._dialect
        guide, tools = request.guide, request.tools
        if guide is None or tools.forced is not None or not tools.names:
            return guide
        # Beside what the answer must look like, calls are possible, in the form that the model has for them.
        if dialect.has_channels or dialect.calls_as_json:
            return made(request.guide_field, lambda: format_or_call(guide, tools))
        return guide

    def _start(self, tokenizer: Tokenizer) -> GuideStart | None:
        """None where the guide begins at once."""

        def ids(word: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(plain(word), add_special=False))

        dialect, tools = self._dialect, self._request.tools
        may_call = bool(tools.names) and tools.forced is None
        may_think = not self._thinking and not self._closed and not self._request.chat.continued
        thinks = dialect.thinks.items() if may_think else ()
        start = GuideStart(
            thinking=ids(self._thinking) if self._thinking else (),
            thinks=tuple((ids(opens), ids(closes)) for opens, closes in thinks),
            unless=tuple(map(ids, dialect.call_begins)) if may_call else (),
        )
        return None if start == GuideStart() else start
