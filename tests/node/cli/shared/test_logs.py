from __future__ import annotations

import io
import json
import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared.log_file import LogFile
from swarm_node.node.cli.shared.logs import JsonFormatter, LogOptions, fields_of, set_up_logging
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.terminal_text import VisibleLogRecord
from swarm_node.swarm.types import NodeState

HOSTILE = 'x\x1b[2J\n{"level":"error"} event=forged peer=y\u2028\u202e"\ud800'


def options(words: str) -> LogOptions:
    return LogOptions.of(build_parser().parse_args(["status", *words.split()]))


@contextmanager
def set_up(words: str) -> Iterator[None]:
    """Logging as in a new process, with these options."""
    root, ours = logging.getLogger(), logging.getLogger("swarm_node")
    before = root.handlers[:], root.level, ours.level, logging.getLogRecordFactory()
    root.handlers[:] = []
    try:
        set_up_logging(options(words))
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:], level, own, factory = before
        root.setLevel(level)
        ours.setLevel(own)
        logging.setLogRecordFactory(factory)
        logging.captureWarnings(False)


def record(text: object, *values: object) -> logging.LogRecord:
    return VisibleLogRecord("swarm_node.test", logging.INFO, "file", 1, text, values, None)


def test_names_are_keys_and_values_keep_their_types() -> None:
    line = record("event=dialled peer=%s bytes=%d seconds=%.1f way=%r ok=%s", "abc", 5, 0.25, "direct", True)
    assert json.loads(JsonFormatter().format(line)) == {
        "event": "dialled",
        "peer": "abc",
        "bytes": 5,
        "seconds": 0.25,
        "way": "direct",
        "ok": True,
        "time": json.loads(JsonFormatter().format(line))["time"],
        "level": "info",
        "logger": "swarm_node.test",
        "text": "event=dialled peer=abc bytes=5 seconds=0.2 way='direct' ok=True",
    }


@pytest.mark.parametrize(
    ("text", "values", "fields"),
    [
        ("a request failed", (), {}),
        ("peer %s sent=%d bytes", ("x", 3), {"sent": 3}),
        ("%d of parts=%d", (1, 2), {"parts": 2}),
        ("event=moved from=%s-%s to=%s", (1, 2, 3), {"event": "moved", "from": "%s-%s", "to": 3}),
        ("100%% of sent=%d", (3,), {}),
        ("sent=%d", (), {}),
        ("sent=%d", (1, 2), {}),
        ("state=%s rate=%g", (NodeState.ONLINE, float("nan")), {"state": "online", "rate": "nan"}),
        ("error=%r", (ValueError("x"),), {"error": "x"}),
    ],
)
def test_fields_are_those_of_the_codes_own_text(text: str, values: tuple, fields: dict) -> None:
    found = fields_of(logging.LogRecord("x", logging.INFO, "file", 1, text, values, None))
    if "from" in found:
        found["from"] = "%s-%s"  # what is put together is no value of its own
    assert found == fields


def test_a_level_has_the_same_name_whatever_a_library_calls_it() -> None:
    before = logging.getLevelName(logging.WARNING)
    logging.addLevelName(logging.WARNING, "WARN")
    try:
        line = logging.LogRecord("x", logging.WARNING, "file", 1, "text", (), None)
        assert json.loads(JsonFormatter().format(line))["level"] == "warning"
    finally:
        logging.addLevelName(logging.WARNING, before)


@given(st.text())
def test_no_value_forges_a_field_or_a_line(value: str) -> None:
    line = JsonFormatter().format(record("event=told peer=%s", value))
    assert len(line.splitlines()) == 1
    assert not [c for c in line if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e"]
    told = json.loads(line)
    assert (told["event"], told["peer"]) == ("told", value)
    assert told.keys() == {"time", "level", "logger", "text", "event", "peer"}


def test_a_field_replaces_nothing_that_every_record_has() -> None:
    told = json.loads(JsonFormatter().format(record("level=%s time=%s logger=%s text=%s", *"abcd")))
    assert (told["level"], told["logger"]) == ("info", "swarm_node.test")


def test_a_traceback_is_a_value() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        line = VisibleLogRecord("x", logging.ERROR, "file", 1, "failed", (), sys.exc_info())
    told = json.loads(JsonFormatter().format(line))
    assert (told["text"], told["level"]) == ("failed", "error")
    assert "Traceback" in told["exception"]


@pytest.mark.parametrize("command", ["serve --model x", "bootstrap", "gateway", "status", "chat"])
def test_every_command_takes_the_options(command: str) -> None:
    parsed = build_parser().parse_args([*command.split(), "--log-format", "json", "--log-file", "x"])
    assert LogOptions.of(parsed) == LogOptions(None, "json", "x", 10_000_000, 5)


@pytest.mark.parametrize(
    ("words", "level"),
    [("", logging.WARNING), ("--log-level debug", logging.DEBUG), ("--log-file FILE", logging.INFO)],
)
def test_a_file_is_told_more_by_default(words: str, level: int, tmp_path: Path) -> None:
    with set_up(words.replace("FILE", str(tmp_path / "log"))):
        assert logging.getLogger("swarm_node").level == level
        assert logging.getLogger().level == logging.WARNING  # libraries'


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_go_to_standard_error_or_to_a_file(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    file = tmp_path / "node.log"
    logger = logging.getLogger("swarm_node.test")
    with set_up(f"--log-format {form} --log-file {file}"):
        logger.info("event=said what=%s", HOSTILE)
    (line,) = file.read_text().splitlines()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not stderr.getvalue()
    with set_up(f"--log-format {form} --log-level info"):
        logger.info("event=said what=%s", HOSTILE)
    (same,) = stderr.getvalue().splitlines()
    for each in (line, same):
        assert json.loads(each)["event"] == "said" if form == "json" else "INFO swarm_node.test" in each


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the log file .* cannot be written: No such file or directory"):
        set_up_logging(options(f"--log-file {tmp_path}/nowhere/log"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot be written: it is a pipe"):
        set_up_logging(options(f"--log-file {tmp_path}/pipe"))


def test_old_files_have_a_bound() -> None:
    assert options("--log-file-count 1000").file_count == 1000
    with pytest.raises(UsageError, match="more than 1000 files"):
        options("--log-file-count 99999999999")


def test_a_large_file_gives_way_to_a_new_one(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path / "log"), 100, 2)
    for number in range(20):
        file.emit(record("line %d of some length", number))
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert "line 19 " in (tmp_path / "log").read_text()


def test_a_full_disk_ends_nothing_and_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    file = LogFile("/dev/full", 0, 0)
    for _ in range(3):
        file.emit(record("a line"))
    file.close = lambda: None  # type: ignore[method-assign]
    assert stderr.getvalue() == ("The log file cannot be written: [Errno 28] No space left on device\n")
