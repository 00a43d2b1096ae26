"""What a terminal chat remembers: turns, system prompt, settings. It knows no terminal and no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....client.forgetting import forget_oldest
from ....swarm.errors import UsageError
from ....swarm.runtime.given_files import read_given
from .commands import SETTINGS

FORMAT = "swarm-node chat 1"
"""First key of a saved chat; the number rises when an older program could not read it any more."""
MAX_TURNS = 100_000
MAX_SAVED_BYTES = 64 * 1024 * 1024
_SAVED = "Give a file that /save has written."

Message = dict[str, str]
"""``role``, ``content``, and ``reasoning_content`` of an answer with thoughts: templates that want these show
them to the model again."""
Count = Callable[[Sequence[Message]], int]
"""How many tokens a list of messages has as a prompt."""


@dataclass(slots=True)
class Conversation:
    """``turns``: messages of "user" and "assistant" by turns, a question first. ``settings``: options of
    ``generate``, only those that were set."""

    system: str = ""
    turns: list[Message] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The prompt: the system prompt, if there is one, and the turns."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    @property
    def waits_for_answer(self) -> bool:
        return bool(self.turns) and self.turns[-1]["role"] == "user"

    def ask(self, text: str) -> None:
        """A question; one that was never answered gives way to it."""
        if self.waits_for_answer:
            self.turns.pop()
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str, reasoning: str = "") -> None:
        """Take the answer to the last question, whole or as far as it came. If it is empty, apart from
        thoughts, the question stays open, for ``retry``."""
        if self.waits_for_answer and text.strip():
            thoughts = {"reasoning_content": reasoning} if reasoning else {}
            self.turns.append({"role": "assistant", "content": text, **thoughts})

    def retry(self) -> None:
        """Forget the last answer, so that its question waits again. Raises UsageError if there is none."""
        if not self.turns:
            raise UsageError("there is nothing to answer again", hint="Ask something first.")
        if not self.waits_for_answer:
            self.turns.pop()

    def clear(self) -> None:
        """Forget all turns; system prompt and settings stay."""
        self.turns.clear()

    def fit(self, count: Count, context: int, max_new_tokens: int) -> int:
        """Make room for an answer by forgetting the oldest questions with their answers; how many.

        The last question stays. Raises UsageError when it is too long by itself.
        """
        kept = forget_oldest(self.messages, count, context=context, max_new_tokens=max_new_tokens)
        if (length := count(kept)) >= context:  # otherwise a short answer is better than none
            raise UsageError(
                f"the message and the system prompt have {length} tokens, but the model's context holds "
                f"{context}, answer included",
                hint=f"Shorten them by at least {length - context + 1} tokens.",
            )
        dropped = (len(self.messages) - len(kept)) // 2
        self.turns = self.turns[2 * dropped :]
        return dropped

    def dumps(self, model: str) -> str:
        """The text that ``/save`` writes; ``model`` is there for its reader."""
        saved = {
            "format": FORMAT,
            "model": model,
            "system": self.system,
            "settings": self.settings,
            "messages": self.turns,
        }
        return json.dumps(saved, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str) -> Conversation:
        """Raises UsageError for what ``dumps`` has not written. Settings are the caller's to check."""
        try:
            saved = json.loads(text)
        except (ValueError, RecursionError):
            raise _no_chat("it is not JSON") from None
        if not isinstance(saved, Mapping) or saved.get("format") != FORMAT:
            raise _no_chat(f"its format is not {FORMAT!r}")
        system, settings, turns = saved.get("system"), saved.get("settings"), saved.get("messages")
        if not isinstance(system, str):
            raise _no_chat("its system prompt is not a text")
        if not isinstance(settings, dict):
            raise _no_chat("its settings are not a JSON object")
        if not isinstance(turns, list) or len(turns) > MAX_TURNS:
            raise _no_chat(f"its messages are not a list of at most {MAX_TURNS}")
        return cls(system, [_turn(number, turn) for number, turn in enumerate(turns)], settings)


def read_saved(name: str) -> Conversation:
    """What ``/save`` has written. Raises UsageError. Values of settings are the caller's to check."""
    path = Path(name).expanduser()
    try:
        text = read_given(path, MAX_SAVED_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}", hint=_SAVED) from error
    conversation = Conversation.loads(text)
    unknown = sorted(set(conversation.settings) - set(SETTINGS))
    if unknown:
        raise UsageError(f"{path} sets {unknown[0]!r}, which is not an option of a chat", hint=_SAVED)
    return conversation


def _turn(number: int, turn: Any) -> Message:
    """A saved turn, without keys of other programs."""
    role = ("user", "assistant")[number % 2]
    keys = ("content", "reasoning_content") if number % 2 else ("content",)
    if isinstance(turn, dict) and turn.get("role") == role and "content" in turn:
        texts = {key: turn[key] for key in keys if key in turn}
        if all(isinstance(text, str) for text in texts.values()):
            return {"role": role, **texts}
    raise _no_chat(f"message {number + 1} is not of the form {{'role': '{role}', 'content': TEXT}}")


def _no_chat(why: str) -> UsageError:
    return UsageError(f"the file is not a saved chat: {why}", hint=_SAVED)
