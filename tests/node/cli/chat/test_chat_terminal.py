"""``swarm-node chat`` as a person has it: in a pseudo-terminal, with a toy model in its own process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import ROOT
from tests.doubles.terminal import CTRL_C, CTRL_D, ENTER, NEW_LINE, UP, Terminal

pytestmark = pytest.mark.slow

READY = "Alt-Enter: new line"
"""In the line below the editor, which is drawn when it waits for keys."""
Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Terminal] = []

    def run(
        answer: str, *options: str, delay: float = 0.0, editor: bool = True, **environment: str
    ) -> Terminal:
        words = [answer, str(delay), "editor" if editor else "no-editor", *options]
        terminal = Terminal(
            [sys.executable, "-m", "tests.doubles.toy_chat", *words],
            {
                "SWARM_NODE_HOME": str(tmp_path / "home"),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                **environment,
            },
        )
        started.append(terminal)
        return terminal

    yield run
    for terminal in started:
        terminal.close()


def test_what_is_typed_before_the_editor_is_there_is_a_message(start: Start) -> None:
    """Enter sends it, as it does in the editor, and nothing of it is shown in between."""
    with start("Hello.", delay=0.05) as terminal:
        terminal.wait_for("Opening the model")
        terminal.type(f"first{ENTER}/model{ENTER}")
        shown = terminal.wait_for("/help shows the commands")
        assert "first" not in shown, "the terminal echoes nothing"
        terminal.wait_for("first after")
        terminal.wait_for("the chat takes")
        terminal.wait_for(READY)
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
        assert terminal.echoes()


def test_editor(start: Start, tmp_path: Path) -> None:
    with start("# Hi\n\n**there** \x1b[2J!" + " na" * 50, delay=0.01, NO_COLOR="1") as terminal:
        terminal.wait_for("/help shows the commands")
        terminal.wait_for(READY)
        terminal.type(f"hello{NEW_LINE}you{ENTER}")
        terminal.wait_for("there")
        terminal.wait_for("first after")
        assert "**there**" not in terminal.text, "Markdown is rendered"
        assert "\u241b[2J" in terminal.text
        assert "\x1b[2J" not in terminal.raw.split("Hi", 1)[1], "the model cannot clear the screen"
        terminal.wait_for(READY)
        terminal.type(f"/save {tmp_path / 'chat.json'}{ENTER}")
        terminal.wait_for("Saved to")
        terminal.wait_for(READY)
        terminal.type(f"{UP}{UP}{ENTER}")
        terminal.wait_for("there")
        terminal.wait_for("Ctrl-C stops")
        terminal.type(CTRL_C)
        terminal.wait_for("Stopped.")
        terminal.wait_for(READY)
        terminal.type(f"/route{ENTER}")
        terminal.wait_for("ms/token")
        terminal.wait_for(READY)
        terminal.type(CTRL_C)
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.wait_for(READY)
        terminal.type(f"/nonsense{ENTER}")
        terminal.wait_for("error: there is no command /nonsense")
        terminal.wait_for(READY)
        terminal.type(f"/set max_new_tokens 3{ENTER}")
        terminal.wait_for(READY)
        terminal.type(f"/retry{ENTER}")
        terminal.wait_for("cut off")
        terminal.wait_for(READY)
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0
        assert terminal.echoes()
        assert "\x1b[31m" not in terminal.raw, "no colours were wanted"
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert saved["messages"][0]["content"] == "hello\nyou"
    history = tmp_path / "home" / "chat-history.jsonl"
    assert history.stat().st_mode & 0o777 == 0o600
    typed = [json.loads(line) for line in history.read_text().splitlines()]
    assert typed[:3] == ["hello\nyou", f"/save {tmp_path / 'chat.json'}", "hello\nyou"]
    assert typed[3:5] == ["/route", "/nonsense"]


@pytest.mark.parametrize("options", [(), ("--plain",)])
def test_thoughts_are_apart_and_dim(start: Start, options: tuple[str, ...]) -> None:
    answer = "<think>\nfirst \x1b[2J\nthen</think>\n\n**there**"
    with start(answer, *options, editor=False, FORCE_COLOR="1") as terminal:
        terminal.wait_for(">")
        terminal.type("hello\r")
        terminal.wait_for("thinking …")
        terminal.wait_for("first \u241b[2J")
        terminal.wait_for("then")
        assert "think>" not in terminal.wait_for("there")
        terminal.wait_for("first after")
        said = terminal.raw.split("hello", 1)[1]
        assert "\x1b[2mthinking …\x1b[0m" in said
        assert "\x1b[2J" not in said
        terminal.wait_for(">")
        terminal.type("/exit\r")
        assert terminal.exit_code() == 0


def test_without_prompt_toolkit(start: Start, tmp_path: Path) -> None:
    with start("ja", "--max-new-tokens", "9", editor=False) as terminal:
        terminal.wait_for('pip install -e ".[chat]"')
        terminal.wait_for(">")
        terminal.type('"""two\r')
        terminal.wait_for(". ")
        terminal.type('lines"""\r')
        terminal.wait_for("ja")
        terminal.wait_for("first after")
        terminal.wait_for(">")
        terminal.press_until(CTRL_C, "Ctrl-D or /exit leaves")
        assert terminal.exit_code(pressing=CTRL_D) == 0
    assert json.loads((tmp_path / "home" / "chat-history.jsonl").read_text()) == "two\nlines"


def test_a_dumb_terminal(start: Start, tmp_path: Path) -> None:
    with start("# ja", "--no-history", TERM="dumb") as terminal:
        terminal.wait_for(">")
        terminal.type("hello\r")
        terminal.wait_for("# ja")
        terminal.wait_for("first after")
        terminal.wait_for(">")
        terminal.type("/exit\r")
        assert terminal.exit_code() == 0
        assert "\x1b" not in terminal.raw.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
    assert not (tmp_path / "home" / "chat-history.jsonl").exists()
