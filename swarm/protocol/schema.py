"""From a message's annotated dataclass to its header map and back, and all messages of one protocol."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any, get_type_hints

from ..errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .fields import FieldError, FieldType
from .wire import Frame, Payload


class Schema:
    """How one dataclass goes on the wire.

    Each field is annotated with a FieldType, except ``payload``, which travels outside the header. A field
    with a default is optional: absent on the wire it has the default, and with the default it is not sent. A
    method ``problem() -> str`` may check fields against each other; empty means none.
    """

    def __init__(self, kind: int, name: str, message_type: type[Any]) -> None:
        self.kind = kind
        self.name = name
        self.message_type = message_type
        self.has_payload = False
        self._problem = getattr(message_type, "problem", None)
        self.fields: dict[str, tuple[FieldType, Any]] = {}  # name: (type, default or MISSING)
        hints = get_type_hints(message_type, include_extras=True)
        for field in fields(message_type):
            if field.name == "payload":
                self.has_payload = True
            else:
                self.fields[field.name] = (hints[field.name].__metadata__[0], field.default)
        self._readers = [(name, type_.read, default) for name, (type_, default) in self.fields.items()]
        self._writers = [(name, type_.write, default) for name, (type_, default) in self.fields.items()]

    def read(self, header: dict[str, object], payload: Any) -> Any:
        """The message. Raises RemoteProtocolError that names the first field that is wrong."""
        values: dict[str, Any] = {}
        for name, read, default in self._readers:
            value = header.get(name, MISSING)
            if value is not MISSING:
                try:
                    values[name] = read(value)
                except FieldError as error:
                    raise RemoteProtocolError(f"{self.name}: {error.describe(name)}") from None
            elif default is MISSING:
                raise RemoteProtocolError(f"{self.name}: {name} is missing")
        if self.has_payload:
            values["payload"] = payload
        elif len(payload):
            raise RemoteProtocolError(f"{self.name}: payload is {len(payload)} bytes, but it may have none")
        message = self.message_type(**values)
        if self._problem is not None and (problem := self._problem(message)):
            raise RemoteProtocolError(f"{self.name}: {problem}")
        return message

    def write(self, message: Any) -> dict[str, object]:
        """The header. Raises LocalProtocolError for a value that the other side would refuse."""
        header: dict[str, object] = {}
        for name, write, default in self._writers:
            value = getattr(message, name)
            if value != default:
                try:
                    header[name] = write(value)
                except FieldError as error:
                    raise LocalProtocolError(f"{self.name}: {error.describe(name)}") from None
        if self._problem is not None and (problem := self._problem(message)):
            raise LocalProtocolError(f"{self.name}: {problem}")
        return header


class GroupSchema:
    """How ``members`` of one message type go in one frame: 1 to ``most`` of them, each of another
    ``session``.

    Each field of the member is a list on the wire: of one value for each member, or of one value for all. A
    field that has its default in all members is not sent. The payload is their rows, back to back and all of
    one size; a member has ``tokens`` of them.
    """

    def __init__(self, kind: int, name: str, message_type: type[Any], member: Schema, most: int) -> None:
        self.kind = kind
        self.name = name
        self.message_type = message_type
        self._member = member.message_type
        self._problem = member._problem
        self._most = most
        self._fields = member.fields
        self._order = [field.name for field in fields(member.message_type)]
        self._values = attrgetter(*self._order)

    def read(self, header: dict[str, object], payload: Payload) -> Any:
        """The message; its members' payloads are bytes of their own, so that one which is kept does not keep
        all. Raises RemoteProtocolError that names the first field that is wrong."""
        sessions = header.get("session")
        if type(sessions) is not list or not 1 <= len(sessions) <= self._most:
            raise RemoteProtocolError(f"{self.name}: session is not a list of 1 to {self._most} sessions")
        count = len(sessions)
        columns: dict[str, list[Any]] = {}
        for name, (type_, default) in self._fields.items():
            if name in header:
                columns[name] = self._read_column(name, header[name], type_, count)
            elif default is MISSING:
                raise RemoteProtocolError(f"{self.name}: {name} is missing")
            else:
                columns[name] = [default] * count
        if len(set(columns["session"])) != count:
            raise RemoteProtocolError(f"{self.name}: a session is there twice")
        columns["payload"] = self._cut(payload, columns["tokens"])
        members = tuple(map(self._member, *(columns[name] for name in self._order)))
        if problem := self._first_problem(members):
            raise RemoteProtocolError(f"{self.name}: {problem}")
        return self.message_type(members)

    def _first_problem(self, members: Iterable[Any]) -> str:
        if self._problem is None:
            return ""
        return next(filter(None, map(self._problem, members)), "")

    def _read_column(self, name: str, values: object, type_: FieldType, count: int) -> list[Any]:
        if type(values) is not list or len(values) not in (1, count):
            raise RemoteProtocolError(f"{self.name}: {name} is not a list of 1 or {count} values")
        try:
            read = [*map(type_.read, values)]
        except FieldError as error:
            raise RemoteProtocolError(f"{self.name}: {error.describe(name)}") from None
        return read if len(read) == count else read * count

    def _cut(self, payload: Payload, tokens: list[int]) -> list[bytes]:
        """Each member's rows."""
        rows = sum(tokens)
        size, rest = divmod(len(payload), rows) if rows else (0, len(payload))
        if rest:
            raise RemoteProtocolError(f"{self.name}: payload is {len(payload)} bytes, not {rows} equal rows")
        view, ends = memoryview(payload), itertools.accumulate(tokens, initial=0)
        return [bytes(view[first * size : end * size]) for first, end in itertools.pairwise(ends)]

    def write(self, message: Any) -> Frame:
        """The frame. Raises LocalProtocolError for one that the other side would refuse."""
        members = message.members
        if not 1 <= len(members) <= self._most:
            raise LocalProtocolError(f"{self.name}: {len(members)} members that do not go together")
        columns: dict[str, tuple[Any, ...]] = dict(
            zip(self._order, zip(*map(self._values, members), strict=True), strict=True)
        )
        payloads = columns.pop("payload")
        sizes = [len(payload) for payload in payloads]
        rows, size = sum(columns["tokens"]), sum(sizes)
        if (
            len(set(columns["session"])) != len(members)
            or (size and not rows)
            or any(own * rows != tokens * size for own, tokens in zip(sizes, columns["tokens"], strict=True))
        ):
            raise LocalProtocolError(f"{self.name}: {len(members)} members that do not go together")
        header: dict[str, object] = {}
        for name, (type_, default) in self._fields.items():
            values = columns[name]
            if name != "session" and values.count(values[0]) == len(values):
                values = values[:1]
                if values[0] == default:
                    continue
            try:
                header[name] = [*map(type_.write, values)]
            except FieldError as error:
                raise LocalProtocolError(f"{self.name}: {error.describe(name)}") from None
        if problem := self._first_problem(members):
            raise LocalProtocolError(f"{self.name}: {problem}")
        return Frame(self.kind, header, b"".join(payloads))


class MessageSet:
    """The messages of one protocol: ``types`` maps a frame's kind byte to the message that it carries.
    ``groups`` maps one to a message that is ``members`` of another type, and how many it may have at most.
    ``schemas`` and ``group_schemas``: how they go on the wire, by kind."""

    def __init__(
        self,
        types: Mapping[Any, type[Any]],
        groups: Mapping[Any, tuple[type[Any], type[Any], int]] = MappingProxyType({}),
    ) -> None:
        self.schemas = {
            int(kind): Schema(kind, getattr(kind, "name", type_.__name__), type_)
            for kind, type_ in types.items()
        }
        self._by_type = {schema.message_type: schema for schema in self.schemas.values()}
        self.group_schemas = {
            int(kind): GroupSchema(kind, kind.name, type_, self._by_type[member], most)
            for kind, (type_, member, most) in groups.items()
        }
        self._groups = {schema.message_type: schema for schema in self.group_schemas.values()}

    def encode(self, message: Any) -> Frame:
        """The frame of a message; its payload is passed on, not copied, but for those of a group.

        Raises LocalProtocolError that names the field, for a value that the other side would refuse.
        """
        group = self._groups.get(type(message))
        if group is not None:
            return group.write(message)
        schema = self._by_type.get(type(message))
        if schema is None:
            raise LocalProtocolError(f"{type(message).__name__} is not a message")
        return Frame(schema.kind, schema.write(message), message.payload if schema.has_payload else b"")

    def decode(self, frame: Frame) -> Any:
        """The message in a frame; its payload is passed on, not copied.

        Raises RemoteProtocolError: code UNKNOWN_KIND for a kind of another version, after which the stream is
        still in step; BAD_FRAME, naming the field, the value and its bound, for a message not of its form.
        """
        schema = self.schemas.get(frame.kind) or self.group_schemas.get(frame.kind)
        if schema is None:
            raise RemoteProtocolError(f"unknown kind of message: {frame.kind}", code=ErrorCode.UNKNOWN_KIND)
        if frame.flags:
            raise RemoteProtocolError(f"{schema.name}: flags are {frame.flags:#04x}, but none is defined")
        return schema.read(frame.header, frame.payload)
