"""What a chat remembers, forgets when the context is full, saves and loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from swarm_node.node.cli.chat import chat as cli_chat
from swarm_node.node.cli.chat import conversation
from swarm_node.node.cli.chat.conversation import FORMAT, Conversation, Message, read_saved
from swarm_node.node.cli.parser import build_parser
from swarm_node.swarm.errors import ChatTemplateError, UsageError

ANSWER = {"role": "assistant", "content": "x"}


def words(messages: Sequence[Message]) -> int:
    """A token a word, and one for each message's role."""
    return sum(len(message["content"].split()) + 1 for message in messages)


def chat(*contents: str, system: str = "") -> Conversation:
    roles = ("user", "assistant")
    return Conversation(
        system, [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    )


def test_turns_follow_each_other() -> None:
    talk = Conversation("be brief")
    talk.ask("one")
    talk.answer("1")
    talk.ask("two")
    assert [message["content"] for message in talk.messages] == ["be brief", "one", "1", "two"]
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user"]


def test_an_unanswered_question_gives_way() -> None:
    talk = chat("hello", "hi", "lost")
    talk.answer("  \n")  # nothing came
    assert talk.waits_for_answer
    talk.ask("again")
    assert [turn["content"] for turn in talk.turns] == ["hello", "hi", "again"]


def test_an_answer_without_a_question_is_not_kept() -> None:
    talk = chat("hello", "hi")
    talk.answer("hi")
    assert len(talk.turns) == 2


def test_retry() -> None:
    talk = chat("hello", "hi")
    talk.retry()
    assert [turn["content"] for turn in talk.turns] == ["hello"]
    talk.retry()  # still waits: the question stays
    assert [turn["content"] for turn in talk.turns] == ["hello"]
    talk.clear()
    with pytest.raises(UsageError, match="nothing to answer"):
        talk.retry()


def test_all_fits() -> None:
    talk = chat("a b", "c", "d", system="s")
    assert talk.fit(words, 100, 50) == 0
    assert len(talk.turns) == 3


@pytest.mark.parametrize(("context", "dropped"), [(18, 0), (17, 1), (14, 1), (11, 2), (9, 2)])
def test_the_oldest_turns_are_forgotten_first(context: int, dropped: int) -> None:
    """Five messages of 3 tokens and a system prompt of 2; 1 more is kept for an answer."""
    talk = chat("q 1", "a 1", "q 2", "a 2", "q 3", system="s")
    assert words(talk.messages) == 17
    assert talk.fit(words, context, 1) == dropped
    assert talk.turns[-1]["content"] == "q 3"
    assert len(talk.turns) == 5 - 2 * dropped
    assert talk.messages[0]["content"] == "s"


def test_room_for_an_answer_is_bounded_by_a_share_of_the_context() -> None:
    talk = chat("q 1", "a 1", "q 2")  # 9 tokens
    assert talk.fit(words, 12, 1000) == 0  # a quarter, 3, is kept free
    assert talk.fit(words, 11, 1000) == 0  # 2
    assert talk.fit(words, 10, 2) == 1


def test_a_message_that_never_fits_costs_no_turn() -> None:
    talk = chat("q 1", "a 1", "much " * 50, system="s")
    with pytest.raises(UsageError, match=r"53 tokens.*holds 20") as caught:
        talk.fit(words, 20, 4)
    assert "34 tokens" in caught.value.hint
    assert len(talk.turns) == 3


def test_a_short_answer_is_better_than_none() -> None:
    talk = chat("one two three four five six")
    assert talk.fit(words, 8, 100) == 0


def test_saved_and_loaded() -> None:
    talk = chat("hé\n```\nx\n```", "ja", system="s")
    talk.settings = {"temperature": 0.5, "seed": 3}
    talk.ask("and?")
    talk.answer("yes", "hm")
    talk.ask("why?")
    assert Conversation.loads(talk.dumps("model")) == talk


def test_thoughts_alone_are_no_answer() -> None:
    talk = chat("hello")
    talk.answer("", "hm")
    assert talk.waits_for_answer


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other"}, "format"),
        ({"system": 3}, "system prompt"),
        ({"settings": []}, "settings"),
        ({"messages": {}}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "message 1"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": 3}]}, "message 2"),
        ({"messages": ["x"]}, "message 1"),
        (
            {"messages": [{"role": "user", "content": "x"}, {**ANSWER, "reasoning_content": 3}]},
            "message 2",
        ),
    ],
)
def test_damaged_files(changes: dict[str, object], says: str) -> None:
    saved = {"format": FORMAT, "model": "m", "system": "", "settings": {}, "messages": []}
    assert Conversation.loads(json.dumps(saved)) == Conversation()
    with pytest.raises(UsageError, match=says):
        Conversation.loads(json.dumps(saved | changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_files_that_are_something_else(text: str) -> None:
    with pytest.raises(UsageError, match="not a saved chat"):
        Conversation.loads(text)


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_SAVED_BYTES", 1000)
    if not Path("/dev/zero").exists():
        pytest.skip("needs /dev/zero")
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        read_saved("/dev/zero")


def test_a_model_without_a_template_is_the_problem_of_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MagicMock()
    model.tokenizer.has_chat_template = False
    model.model.name = "base"
    monkeypatch.setattr(cli_chat.SwarmModel, "connect", lambda **options: model)
    with pytest.raises(ChatTemplateError, match="has no chat template") as caught:
        cli_chat.run_chat(build_parser().parse_args(["chat", "--model", "base"]))
    assert caught.value.exit_code == 3
    assert "`swarm-node generate --model base --raw" in caught.value.hint
