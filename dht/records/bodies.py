"""What an entry says: NodeInfo, ModelRef, Wanted and withdrawal to msgpack maps and back.

    node    {"v": 1, "kind": "node", "name", "digest", "n_blocks", "span", "state", "maddrs", "decode_ms",
             "prefill_tps", "kv_free", "kv_total", "codecs", "weights", "agent",
             "queue_ms", "tps", "sessions", "links", "journal", "journal_max", "row_check", "coarse",
             "max_blocks", "weights_root", "weights_whole", "shares_weights",
             "direct", "label", "incarnation", "device", "up", "down", "context_ms", "states_free",
             "states_total"}                                        those from "queue_ms" on may be absent
    model   {"v": 1, "kind": "model", "name", "digest", "n_blocks", "parts"}      "parts" may be absent
    wanted  {"v": 1, "kind": "wanted", "models"}          a list of [name, digest or ""]
    gone    {"v": 1, "kind": "gone"}                      the owner withdrew; kept until the old entry is dead

A body does not name its peer, which is the entry's signer. Unknown fields are ignored; unknown versions and
kinds are refused, and their reader skips the entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from ...swarm.errors import LocalProtocolError, RemoteProtocolError
from ...swarm.figures import (
    BYTES_PER_S,
    CONTEXT_MS,
    DECODE_MS,
    MAX_JOURNAL_BYTES,
    MAX_KV_TOKENS,
    MAX_LINE_BYTES_PER_S,
    MAX_RTT_US,
    MAX_SESSIONS,
    PREFILL_TOKENS_PER_S,
    QUEUE_MS,
    TOKENS_PER_S,
    UNIX_TIME,
)
from ...swarm.names import MAX_NAME_CHARS
from ...swarm.placement.demand import MAX_WANTED, Wanted, WantedModel
from ...swarm.protocol.fields import (
    Boolean,
    Choice,
    Count,
    FieldError,
    FieldType,
    Integer,
    Measured,
    Prose,
    Sequence,
    SpanField,
    Word,
)
from ...swarm.protocol.wire import refuse_extension
from ...swarm.transport.direct_maddrs import mark_direct, without_mark
from ...swarm.types import (
    MAX_BLOCKS,
    MAX_NODE_NAME,
    MAX_PEER_LINKS,
    MAX_RECORD_BYTES,
    Incarnation,
    ModelRef,
    NodeInfo,
    NodeState,
    PeerLink,
    Span,
)
from .maddrs import MAX_MADDR_CHARS, is_dialable

RECORD_VERSION = 1
MAX_MADDRS = 12
MAX_DIRECT_MADDRS = 4
"""A node is on few networks that others share with it; each address is some 30 bytes of every
announcement."""
MAX_CODECS = 16

_MAX_BODY_BYTES = MAX_RECORD_BYTES - 128  # the signature and its wrapping take about 75


@dataclass(frozen=True, slots=True)
class Name:
    """A model's name: shown to people, so printable; never shortened, since clients look for it."""

    def read(self, value: object) -> str:
        if type(value) is str and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable():
            return value
        raise FieldError(f"a name of 1 to {MAX_NAME_CHARS} printable characters", value)

    write = read


class LinkField:
    """A PeerLink: ``[peer id, round trip in microseconds, bytes per second or 0]`` on the wire."""

    _types: tuple[FieldType, ...] = (
        Word(re.compile(r"[1-9A-HJ-NP-Za-km-z]{1,128}"), "a peer id in base58"),
        Count(MAX_RTT_US),
        Measured(BYTES_PER_S),
    )

    def read(self, value: object) -> PeerLink:
        if not isinstance(value, list) or len(value) != len(self._types):
            raise FieldError("a list of peer id, round trip and bandwidth", value)
        peer_id, rtt_us, bytes_per_s = map(_read_item, range(len(value)), self._types, value)
        return PeerLink(peer_id, rtt_us / 1e6, bytes_per_s)

    def write(self, value: object) -> list[object]:
        if not isinstance(value, PeerLink):
            raise FieldError("a PeerLink", value)
        peer_id, rtt_us, bytes_per_s = self._types
        return [
            peer_id.write(value.peer_id),
            rtt_us.write(round(min(max(0.0, value.rtt_s) * 1e6, MAX_RTT_US))),
            round(cast(float, bytes_per_s.write(value.bytes_per_s))),
        ]


class IncarnationField:
    """An Incarnation: ``[seconds of Unix time, nonce]`` on the wire; none: an empty list."""

    _types: tuple[FieldType, ...] = (
        Measured(UNIX_TIME),
        Word(re.compile(r"[0-9a-f]{16}"), "16 lowercase hexadecimal digits"),
    )

    def read(self, value: object) -> Incarnation | None:
        if value == []:
            return None
        if not isinstance(value, list) or len(value) != len(self._types):
            raise FieldError("a list of a time and a nonce", value)
        return Incarnation(*map(_read_item, range(len(value)), self._types, value))

    def write(self, value: object) -> list[object]:
        if value is None:
            return []
        if not isinstance(value, Incarnation):
            raise FieldError("an Incarnation", value)
        return [
            type_.write(each) for type_, each in zip(self._types, (value.since, value.nonce), strict=True)
        ]


class WantedField:
    """A WantedModel: ``[name, digest or ""]`` on the wire."""

    _types: tuple[FieldType, ...] = (
        Name(),
        Word(re.compile(r"([0-9a-f]{64})?"), "64 lowercase hexadecimal digits, or empty"),
    )

    def read(self, value: object) -> WantedModel:
        if not isinstance(value, list) or len(value) != len(self._types):
            raise FieldError("a list of name and digest", value)
        return WantedModel(*map(_read_item, range(len(value)), self._types, value))

    def write(self, value: object) -> list[object]:
        if not isinstance(value, WantedModel):
            raise FieldError("a WantedModel", value)
        return list(map(_read_item, range(2), self._types, (value.name, value.digest)))


def _read_item(index: int, type_: FieldType, value: object) -> Any:
    try:
        return type_.read(value)
    except FieldError as error:
        raise error.inside(f"[{index}]") from None


@dataclass(frozen=True, slots=True)
class Gone:
    """The owner has withdrawn what it announced under this key."""


_DIGEST = Word(re.compile(r"[0-9a-f]{64}"), "64 lowercase hexadecimal digits")
_TOKENS = Count(MAX_KV_TOKENS)
_BYTES = Count(MAX_JOURNAL_BYTES)
_PLAIN_TCP = re.compile(r"/[a-z0-9]+/[^/]+/tcp/[0-9]+")
_MADDR = re.compile(rf"[\x21-\x7e]{{1,{MAX_MADDR_CHARS}}}")

_MODEL_FIELDS: dict[str, FieldType] = {"name": Name(), "digest": _DIGEST, "n_blocks": Integer(1, MAX_BLOCKS)}
_INDEX_FIELDS: dict[str, FieldType] = _MODEL_FIELDS | {
    "parts": Word(re.compile(r"[0-9a-f]{0,64}"), "up to 64 lowercase hexadecimal digits")
}
_CODEC = Word(re.compile(r"[a-z0-9_-]{1,24}"), "a codec's name")
_NODE_FIELDS: dict[str, FieldType] = _MODEL_FIELDS | {
    "span": SpanField(),
    "state": Choice(NodeState),
    "maddrs": Sequence(Word(_MADDR, "an address"), 0, MAX_MADDRS),
    "decode_ms": Measured(DECODE_MS),
    "prefill_tps": Measured(PREFILL_TOKENS_PER_S),
    "kv_free": _TOKENS,
    "kv_total": _TOKENS,
    "codecs": Sequence(_CODEC, 0, MAX_CODECS),
    "weights": Prose(64),
    "agent": Prose(64),
    "queue_ms": Measured(QUEUE_MS),
    "tps": Measured(TOKENS_PER_S),
    "sessions": Count(MAX_SESSIONS),
    "links": Sequence(LinkField(), 0, MAX_PEER_LINKS),
    "journal": _BYTES,
    "journal_max": _BYTES,
    "row_check": Word(re.compile(r"[0-9a-f]{0,32}"), "up to 32 lowercase hexadecimal digits"),
    "coarse": Sequence(_CODEC, 0, MAX_CODECS),
    "max_blocks": Integer(0, MAX_BLOCKS),
    "weights_root": Word(re.compile(r"([0-9a-f]{64})?"), "64 lowercase hexadecimal digits, or empty"),
    "weights_whole": Boolean(),
    "shares_weights": Boolean(),
    "direct": Sequence(Word(_MADDR, "an address"), 0, MAX_DIRECT_MADDRS),
    "label": Prose(MAX_NODE_NAME),
    "incarnation": IncarnationField(),
    "device": Prose(16),
    "up": Count(MAX_LINE_BYTES_PER_S),
    "down": Count(MAX_LINE_BYTES_PER_S),
    "context_ms": Measured(CONTEXT_MS),
    "states_free": Count(MAX_SESSIONS),
    "states_total": Count(MAX_SESSIONS),
}
_WANTED_FIELDS: dict[str, FieldType] = {"models": Sequence(WantedField(), 1, MAX_WANTED)}
_OPTIONAL: dict[str, object] = {
    "parts": "",
    "queue_ms": 0.0,
    "tps": 0.0,
    "sessions": 0,
    "links": (),
    "journal": 0,
    "journal_max": 0,
    "row_check": "",
    "coarse": (),
    "max_blocks": 0,
    "weights_root": "",
    "weights_whole": False,
    "shares_weights": False,
    "direct": (),
    "label": "",
    "incarnation": None,
    "device": "",
    "up": 0,
    "down": 0,
    "context_ms": 0.0,
    "states_free": 0,
    "states_total": 0,
}
"""The fields that an entry may leave out, and the values that they then have."""


def encode_node(info: NodeInfo) -> bytes:
    """The body of a node's announcement.

    Addresses that cannot be dialled are left out. If the rest does not fit, the last links go first, then the
    direct addresses, then the last others. Raises LocalProtocolError if ``info`` breaks the bounds that every
    reader enforces.
    """
    if info.span.end > info.model.n_blocks:
        raise LocalProtocolError(f"a span {info.span} outside a model of {info.model.n_blocks} blocks")
    if info.free_kv_tokens > info.total_kv_tokens:
        raise LocalProtocolError("more free KV cache than there is")
    if info.free_states > info.total_states:
        raise LocalProtocolError("more free states than there are")
    if info.journal_bytes > info.total_journal_bytes:
        raise LocalProtocolError("a journal larger than its bound")
    maddrs = tuple(maddr for maddr in info.maddrs if is_dialable(maddr, info.peer_id))[:MAX_MADDRS]
    direct = _plain_direct(map(without_mark, info.direct_maddrs), info.peer_id)[:MAX_DIRECT_MADDRS]
    links = info.links[:MAX_PEER_LINKS]
    while True:
        body = _encode(
            "node",
            _NODE_FIELDS,
            {
                **_model_values(info.model),
                "span": info.span,
                "state": info.state,
                "maddrs": maddrs,
                "decode_ms": info.decode_ms_per_block,
                "prefill_tps": info.prefill_tokens_per_s,
                "kv_free": info.free_kv_tokens,
                "kv_total": info.total_kv_tokens,
                "codecs": info.codecs,
                "weights": info.weights,
                "agent": info.version,
                "queue_ms": info.queue_ms,
                "tps": info.tokens_per_s,
                "sessions": info.sessions,
                "links": links,
                "journal": info.journal_bytes,
                "journal_max": info.total_journal_bytes,
                "row_check": info.row_check,
                "coarse": info.coarse,
                "max_blocks": info.max_blocks,
                "weights_root": info.weights_root,
                "weights_whole": info.weights_whole,
                "shares_weights": info.shares_weights,
                "direct": direct,
                "label": info.name,
                "incarnation": info.incarnation,
                "device": info.device,
                "up": info.up_bytes_per_s,
                "down": info.down_bytes_per_s,
                "context_ms": info.context_ms_per_block,
                "states_free": info.free_states,
                "states_total": info.total_states,
            },
        )
        if len(body) <= _MAX_BODY_BYTES or not (links or direct or maddrs):
            return body
        if links:
            links = links[:-1]
        elif direct:
            direct = direct[:-1]
        else:
            maddrs = maddrs[:-1]


def encode_model(model: ModelRef) -> bytes:
    """The body of an entry in the index of models. Raises LocalProtocolError."""
    return _encode("model", _INDEX_FIELDS, {**_model_values(model), "parts": model.parts})


def encode_wanted(models: tuple[WantedModel, ...]) -> bytes:
    """The body of an entry in the demand. Raises LocalProtocolError."""
    return _encode("wanted", _WANTED_FIELDS, {"models": models})


def encode_gone() -> bytes:
    return _encode("gone", {}, {})


Content = NodeInfo | ModelRef | Wanted | Gone


def decode(owner: str, body: bytes) -> Content:
    """What ``owner`` (the PeerID that signed) announced. Raises RemoteProtocolError naming the bad field."""
    record = _unpack(body)
    version, kind = record.get("v"), record.get("kind")
    if type(version) is not int or version != RECORD_VERSION:
        raise RemoteProtocolError(f"{owner} announces itself in a version that is not {RECORD_VERSION}")
    if kind == "gone":
        return Gone()
    if kind == "model":
        return _model(_read(owner, _INDEX_FIELDS, record))
    if kind == "node":
        return _node(owner, _read(owner, _NODE_FIELDS, record))
    if kind == "wanted":
        return Wanted(owner, _read(owner, _WANTED_FIELDS, record)["models"])
    raise RemoteProtocolError(f"{owner} announces something of a kind that this version does not know")


def _node(owner: str, values: dict[str, Any]) -> NodeInfo:
    model, span = _model(values), cast(Span, values["span"])
    if span.end > model.n_blocks:
        raise RemoteProtocolError(f"{owner} claims blocks {span} of a model of {model.n_blocks}")
    if values["kv_free"] > values["kv_total"]:
        raise RemoteProtocolError(f"{owner} claims more free KV cache than it has")
    if values["states_free"] > values["states_total"]:
        raise RemoteProtocolError(f"{owner} claims more free states than it has")
    if values["journal"] > values["journal_max"]:
        raise RemoteProtocolError(f"{owner} claims a journal larger than its bound")
    return NodeInfo(
        peer_id=owner,
        maddrs=tuple(maddr for maddr in values["maddrs"] if is_dialable(maddr, owner)),
        model=model,
        span=span,
        state=values["state"],
        decode_ms_per_block=values["decode_ms"],
        prefill_tokens_per_s=values["prefill_tps"],
        free_kv_tokens=values["kv_free"],
        total_kv_tokens=values["kv_total"],
        codecs=values["codecs"],
        weights=values["weights"],
        version=values["agent"],
        queue_ms=values["queue_ms"],
        tokens_per_s=values["tps"],
        sessions=values["sessions"],
        links=values["links"],
        journal_bytes=values["journal"],
        total_journal_bytes=values["journal_max"],
        row_check=values["row_check"],
        coarse=values["coarse"],
        max_blocks=values["max_blocks"],
        weights_root=values["weights_root"],
        weights_whole=values["weights_whole"],
        shares_weights=values["shares_weights"],
        direct_maddrs=tuple(map(mark_direct, _plain_direct(values["direct"], owner))),
        name=values["label"],
        incarnation=values["incarnation"],
        device=values["device"],
        up_bytes_per_s=values["up"],
        down_bytes_per_s=values["down"],
        context_ms_per_block=values["context_ms"],
        free_states=values["states_free"],
        total_states=values["states_total"],
    )


def _plain_direct(maddrs: Iterable[str], owner: str) -> tuple[str, ...]:
    """Those of the addresses that are of plain TCP."""
    return tuple(maddr for maddr in maddrs if is_dialable(maddr, owner) and _PLAIN_TCP.fullmatch(maddr))


def _model(values: dict[str, Any]) -> ModelRef:
    return ModelRef(values["name"], values["digest"], values["n_blocks"], values.get("parts", ""))


def _model_values(model: ModelRef) -> dict[str, object]:
    return {"name": model.name, "digest": model.digest, "n_blocks": model.n_blocks}


def _encode(kind: str, fields: dict[str, FieldType], values: dict[str, object]) -> bytes:
    record: dict[str, object] = {"v": RECORD_VERSION, "kind": kind}
    for name, field in fields.items():
        if name in _OPTIONAL and values[name] == _OPTIONAL[name]:
            continue
        try:
            record[name] = field.write(values[name])
        except FieldError as error:
            raise LocalProtocolError(f"cannot announce this: {error.describe(name)}") from None
    body: bytes = msgpack.packb(record)
    return body


def _read(owner: str, fields: dict[str, FieldType], record: dict[str, object]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in _OPTIONAL and name not in record:
            values[name] = _OPTIONAL[name]
            continue
        try:
            values[name] = field.read(record.get(name))
        except FieldError as error:
            raise RemoteProtocolError(f"an announcement of {owner}: {error.describe(name)}") from None
    return values


def _unpack(body: bytes) -> dict[str, object]:
    try:
        record = msgpack.unpackb(body, ext_hook=refuse_extension, max_map_len=64, max_array_len=64)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("an announcement that is not msgpack") from error
    if type(record) is not dict:
        raise RemoteProtocolError("an announcement that is not a map")
    return record
