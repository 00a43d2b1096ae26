"""From a message's annotated dataclass to its header map and back, and all messages of one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from ..errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .fields import FieldError, FieldType
from .wire import Frame


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


class MessageSet:
    """The messages of one protocol: ``types`` maps a frame's kind byte to the message that it carries.
    ``schemas``: how each goes on the wire, by kind."""

    def __init__(self, types: Mapping[Any, type[Any]]) -> None:
        self.schemas = {
            int(kind): Schema(kind, getattr(kind, "name", type_.__name__), type_)
            for kind, type_ in types.items()
        }
        self._by_type = {schema.message_type: schema for schema in self.schemas.values()}

    def encode(self, message: Any) -> Frame:
        """The frame of a message; its payload is passed on, not copied.

        Raises LocalProtocolError that names the field, for a value that the other side would refuse.
        """
        schema = self._by_type.get(type(message))
        if schema is None:
            raise LocalProtocolError(f"{type(message).__name__} is not a message")
        return Frame(schema.kind, schema.write(message), message.payload if schema.has_payload else b"")

    def decode(self, frame: Frame) -> Any:
        """The message in a frame; its payload is passed on, not copied.

        Raises RemoteProtocolError: code UNKNOWN_KIND for a kind of another version, after which the stream is
        still in step; BAD_FRAME, naming the field, the value and its bound, for a message not of its form.
        """
        schema = self.schemas.get(frame.kind)
        if schema is None:
            raise RemoteProtocolError(f"unknown kind of message: {frame.kind}", code=ErrorCode.UNKNOWN_KIND)
        if frame.flags:
            raise RemoteProtocolError(f"{schema.name}: flags are {frame.flags:#04x}, but none is defined")
        return schema.read(frame.header, frame.payload)
