"""Logs of a command: to standard error or to a file, as text or as JSON, a record a line.

What the code logs are lines of ``name=value``, written as ``"event=dialled peer=%s seconds=%.1f"``. In JSON
these names are keys, and the values have their own types. No record can forge another, or control a terminal.

A record is written where it is logged, in the event loop too: a line in the system's cache of a disk takes
microseconds, and what a process logged last is there also after it was killed.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO

from ....swarm.errors import UsageError
from ....swarm.terminal_text import VisibleLogRecord, json_line
from .arguments import byte_size, count

FORMATS = ("text", "json")
MOST_FILES = 1000
LEVELS = ("debug", "info", "warning", "error")
_NAMES = {logging.getLevelNamesMapping()[name.upper()]: name for name in (*LEVELS, "critical")}
"""Of levels by their numbers: hivemind gives them other names."""
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

_PIECE = re.compile(r"(?:(?P<name>[a-z][a-z0-9_]*)=)?(?P<value>%[-+#0-9.]*[a-zA-Z]|\S+?)(?=\s|$)")
_CONVERSION = re.compile(r"%[-+#0-9.]*[a-zA-Z]")


def add_logging(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log-level",
        default=None,
        choices=LEVELS,
        help="how much to log (default: warning; with --log-file: info)",
    )
    command.add_argument(
        "--log-format", default="text", choices=FORMATS, help="text, or a JSON object a line (default: text)"
    )
    command.add_argument(
        "--log-file",
        default=None,
        metavar="FILE",
        help="log into this file, of one process alone (default: to standard error)",
    )
    command.add_argument(
        "--log-file-size",
        type=byte_size,
        default=10_000_000,
        metavar="SIZE",
        help="begin a new file when it is this large; the old one becomes FILE.1 (default: 10MB)",
    )
    command.add_argument(
        "--log-file-count",
        type=count_of_files,
        default=5,
        metavar="N",
        help="how many old files are kept (default: %(default)s)",
    )


def count_of_files(text: str) -> int:
    """Each is renamed when a new one begins."""
    if (files := count(text)) > MOST_FILES:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_FILES} files")
    return files


@dataclass(frozen=True, slots=True)
class LogOptions:
    """``level``: None is ``info`` in a file, else ``warning``. ``file_size``: bytes."""

    level: str | None = None
    format: str = "text"
    file: str | None = None
    file_size: int = 10_000_000
    file_count: int = 5

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> LogOptions:
        return cls(
            arguments.log_level,
            arguments.log_format,
            arguments.log_file,
            arguments.log_file_size,
            arguments.log_file_count,
        )


def set_up_logging(options: LogOptions) -> None:
    """From here on ours are logged as asked for, and libraries only when they warn. Raises UsageError."""
    level = options.level or ("info" if options.file else "warning")
    handler = _StandardError() if options.file is None else _opened(options, options.file)
    handler.setFormatter(JsonFormatter() if options.format == "json" else logging.Formatter(TEXT_FORMAT))
    logging.setLogRecordFactory(VisibleLogRecord)
    logging.captureWarnings(True)
    logging.basicConfig(handlers=[handler], level="ERROR" if level == "error" else "WARNING")
    logging.getLogger("swarm_node").setLevel(level.upper())


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to ``sys.stderr`` as it is now: a live display puts a stream there that writes above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _opened(options: LogOptions, file: str) -> logging.Handler:
    from .log_file import LogFile  # here: it imports much, and most commands log into none

    try:
        return LogFile(file, options.file_size, options.file_count)
    except OSError as error:
        raise UsageError(
            f"the log file {file} cannot be written: {error.strerror or error}",
            hint="Give --log-file a file in a folder that exists and that you may write to.",
        ) from None


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ``time`` (UTC), ``level``, ``logger``, ``text``, the names and values in
    it, and ``exception`` where there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03}Z",
            "level": _NAMES.get(record.levelno, record.levelname.lower()),
            "logger": record.name,
            "text": record.getMessage(),
        }
        line = {**line, **fields_of(record), **line}  # their order, and their values
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json_line(line)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The names and values of a record. Names are of the code's own text alone: a value that looks like one
    is none."""
    text, values = record.msg, record.args
    if not isinstance(text, str) or not isinstance(values, tuple) or "%%" in text:
        return {}
    left = list(values)
    found: dict[str, object] = {}
    for piece in _PIECE.finditer(text):
        name, word = piece["name"], piece["value"]
        conversions = _CONVERSION.findall(piece[0])
        if len(conversions) > len(left):
            return {}
        taken = [left.pop(0) for _ in conversions]
        if name:
            found[name] = _plain(taken[0]) if conversions == [word] else word
    return found if not left else {}


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if value == value and abs(value) < 1e300 else str(value)
    return value if isinstance(value, str | int | None) else str(value)
