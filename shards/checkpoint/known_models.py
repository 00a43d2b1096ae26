"""Which model this machine has used under a name, and which ones its user has pinned: a text file, as ssh's
known_hosts. It never holds what others say of a model's age.

    pin DIGEST NAME                  the user's: nothing else is taken under this name
    used DIGEST FIRST LAST NAME      a client got answers from it, or a node served it; times in UTC

DIGEST: the model's, or ``sha256:`` and the root of its weights. ``#`` begins a remark, which stays. A file
with any other line is refused: it may have been meant for a pin.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from ...swarm.errors import SwarmError, UsageError
from ...swarm.names import ModelName, plain_name
from ...swarm.runtime.state_files import replace_file, state_folder

MAX_USED = 512
"""At most this many lines of used models are kept. Of more, those not used for longest are dropped."""
MAX_FILE_BYTES = 1024 * 1024
TOUCH_S = 3600.0
"""A model that was noted within this many seconds is not noted again."""
_HEADER = "# swarm-node: models by name. `pin` lines are yours, `used` ones come when a model has answered.\n"

logger = logging.getLogger(__name__)

Now = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class UsedModel:
    """``first``, ``last``: when this machine used ``digest`` under ``name``."""

    name: str
    digest: str
    first: datetime
    last: datetime

    def __str__(self) -> str:
        return f"used {self.digest} {_text(self.first)} {_text(self.last)} {self.name}"


@dataclass(frozen=True, slots=True)
class _Lines:
    pins: tuple[ModelName, ...] = ()
    used: tuple[UsedModel, ...] = ()
    remarks: tuple[str, ...] = ()


class KnownModels:
    """The file at ``path``, read anew by every call, which blocks. Case and ``.gguf`` of names do not count.

    Raises UsageError for a file that cannot be written, and for one with an unreadable line: a pin that is
    not read would protect nothing.
    """

    def __init__(self, path: Path, now: Now = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._now = now

    def pin(self, name: str) -> ModelName | None:
        """What the user has pinned ``name`` to."""
        return next((pin for pin in self._read().pins if _same(pin.name, name)), None)

    def pins(self) -> tuple[ModelName, ...]:
        return self._read().pins

    def used(self, name: str, among: Iterable[str] | None = None) -> UsedModel | None:
        """What this machine used last under ``name``; ``among`` these digests, if that is given."""
        digests = None if among is None else set(among)
        fitting = [
            each
            for each in self._read().used
            if _same(each.name, name) and (digests is None or each.digest in digests)
        ]
        return max(fitting, key=lambda each: (each.last, each.digest), default=None)

    def first_used(self) -> dict[str, datetime]:
        """The first time that this machine used each model, under any name, by digest."""
        first: dict[str, datetime] = {}
        for each in self._read().used:
            first[each.digest] = min(each.first, first.get(each.digest, each.first))
        return first

    def note_used(self, name: str, digest: str) -> None:
        """A model has answered under this name, here. A disk that cannot be written is only logged."""
        try:
            self._note_used(name, digest)
        except UsageError as error:
            logger.warning("event=known_models_unwritable error=%r", error.message)

    def _note_used(self, name: str, digest: str) -> None:
        now = self._now()
        latest = self.used(name)
        if latest and latest.digest == digest and 0 <= (now - latest.last).total_seconds() < TOUCH_S:
            return
        before = self.used(name, [digest])
        entry = UsedModel(name, digest, before.first if before else now, now)

        def with_it(lines: _Lines) -> _Lines:
            rest = [each for each in lines.used if not (_same(each.name, name) and each.digest == digest)]
            kept = sorted([*rest, entry], key=lambda each: each.last)[-MAX_USED:]
            return replace(lines, used=tuple(kept))

        self._change(with_it)

    def add_pin(self, pin: ModelName) -> None:
        """Add a pin in place of the name's earlier one."""
        self._change(lambda lines: replace(lines, pins=(*_without(lines.pins, pin.name), pin)))

    def remove_pin(self, name: str) -> bool:
        """Remove the pin of a name. Returns whether there was one."""
        was = self.pin(name) is not None
        self._change(lambda lines: replace(lines, pins=tuple(_without(lines.pins, name))))
        return was

    def _read(self) -> _Lines:
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return _Lines()
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from None
        if len(content) > MAX_FILE_BYTES:
            raise self._unusable(f"has more than {MAX_FILE_BYTES} bytes")
        try:
            return _parsed(content.decode().splitlines())
        except UnicodeDecodeError:
            raise self._unusable("is not text in UTF-8") from None
        except ValueError as error:
            raise self._unusable(str(error)) from None

    def _change(self, change: Callable[[_Lines], _Lines]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self.path.with_name(self.path.name + ".lock"), mode=0o600):
                lines = change(self._read())
                pins = [f"pin {_suffix(pin)} {pin.name}" for pin in lines.pins]
                text = "\n".join([*lines.remarks, *pins, *map(str, lines.used)])
                replace_file(self.path, ("" if lines.remarks else _HEADER) + text + "\n")
        except OSError as error:
            hint = "Set SWARM_NODE_HOME to a folder that this user can write."
            raise self._unusable(f"cannot be written: {error.strerror}", hint) from None

    def _unusable(self, why: str, hint: str = "Correct or remove it.") -> UsageError:
        return UsageError(f"the file of models that this machine knows, {self.path}, {why}", hint=hint)


def default_known() -> KnownModels:
    """``known_models`` in the state folder."""
    return KnownModels(state_folder() / "known_models")


def _parsed(lines: Sequence[str]) -> _Lines:
    """Raises ValueError for a line that cannot be read, and for two pins of one name."""
    pins: list[ModelName] = []
    used: list[UsedModel] = []
    remarks: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.split(None, 4)
        try:
            match words:
                case []:
                    pass
                case [first, *_] if first.startswith("#"):
                    remarks.append(line)
                case ["used", digest, first, last, name]:
                    read = ModelName.parse(f"{name.strip()}@{digest}")
                    used.append(UsedModel(read.name, read.digest, _time(first), _time(last)))
                case ["pin", digest, _, *_] if not _is_time(words[2]):
                    pins.append(ModelName.parse(f"{line.split(None, 2)[2].strip()}@{digest}"))
                case _:
                    raise ValueError
        except (ValueError, SwarmError):
            raise ValueError(
                f"has an unreadable line {number}: {line[:80]!r}. Pins are: pin DIGEST NAME"
            ) from None
        if pins and _without(pins[:-1], pins[-1].name) != pins[:-1]:
            raise ValueError(f"has two pins of {pins[-1].name!r}, the second in line {number}")
    return _Lines(tuple(pins), tuple(used), tuple(remarks))


def _is_time(text: str) -> bool:
    try:
        return bool(_time(text))
    except ValueError:
        return False


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _suffix(pin: ModelName) -> str:
    return f"sha256:{pin.root}" if pin.root else pin.digest


def _without(pins: Iterable[ModelName], name: str) -> list[ModelName]:
    return [pin for pin in pins if not _same(pin.name, name)]


def _same(one: str, other: str) -> bool:
    return plain_name(one) == plain_name(other)
