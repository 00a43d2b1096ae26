"""What people call models, ``NAME``, ``NAME@DIGEST`` or ``NAME@sha256:ROOT``, and which names they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from unicodedata import normalize

from .errors import UsageError
from .types import ModelRef

MAX_NAME_CHARS = 128
"""Characters of a model's name at most, on the wire and in what people type."""
DIGEST_CHARS = 64
"""Characters of a whole digest."""
MIN_PREFIX = 4
"""A person must give at least this many characters of a digest: two models of one name rarely share them."""
PREFIX = 12
"""This many characters of a digest are shown to people."""
QUANTIZATION = r"(?:ud-)?(?:i?q[1-8]\w*|tq[12]_0|mxfp4\w*|bf16|fp?16|fp?32)"
"""A pattern of how names of GGUF models tell their quantization, in lower case."""

_DIGEST = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},{DIGEST_CHARS}}}")
_ROOT = re.compile(r"sha256:([0-9a-f]{64})")
# Of GGUF files' names, or behind the colon of a hub's name.
_QUANTIZATION = re.compile(rf"((-gguf)?:|[-_.])({QUANTIZATION}|fp8|int[48])$")
_PART = re.compile(r"(?<=.)-[0-9]{5}-of-[0-9]{5}$")
_LISTED = 8
_CLOSE = 0.5  # difflib's ratio; lower ones are no misspellings


@dataclass(frozen=True, slots=True)
class ModelName:
    """``digest``: the first characters of a model's digest, or "". ``root``: that of its weights' manifest,
    whole, or ""."""

    name: str
    digest: str = ""
    root: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Raises UsageError for a name that no model can have."""
        name, at, suffix = text.strip().rpartition("@")
        if not at:
            name, suffix = suffix, ""
        suffix = suffix.lower()
        root = _ROOT.fullmatch(suffix)
        if at and root is None and not _DIGEST.fullmatch(suffix):
            raise UsageError(
                f"{_shown(text)} does not name a model: what follows the @ is not a digest",
                hint=f"Write NAME, NAME@ and {MIN_PREFIX} to 64 of 0-9a-f, or NAME@sha256: and 64 of them.",
            )
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise UsageError(
                f"{_shown(text)} is not a name of a model",
                hint=f"A name has 1 to {MAX_NAME_CHARS} printable characters.",
            )
        return cls(name, "" if root else suffix, root[1] if root else "")

    def __str__(self) -> str:
        if self.root:
            return f"{self.name}@sha256:{self.root}"
        return f"{self.name}@{self.digest[:PREFIX]}" if self.digest else self.name

    def fits(self, digest: str) -> bool:
        return digest.startswith(self.digest)


def is_same_name(one: str, other: str) -> bool:
    """Whether the name ``one`` may mean the model that is called ``other``."""
    return nearness(one, other) is not None


def nearness(name: str, known: str) -> int | None:
    """How near ``known`` is to what a person says: 0, exactly it; 1, other letters or another file ending;
    2, only one of them has an owner before the slash; 3, it tells its quantization as well. None: another
    model, as another owner's is."""
    if name == known:
        return 0
    if plain_name(name) == plain_name(known):
        return 1
    if "/" in name and "/" in known:
        return 3 if plain_name(known.partition(":")[0]) == plain_name(name) else None
    if _short(name) == _short(known):
        return 2
    return 3 if _QUANTIZATION.sub("", _short(known)) == _short(name) else None


def matching(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are the nearest to ``name``, if any is near: each once, in order. For names that
    strangers cannot choose."""
    near = {each: how for each in known if (how := nearness(name, each)) is not None}
    nearest = min(near.values(), default=0)
    return [each for each, how in near.items() if how == nearest]


def digest_prefix(digest: str, others: Iterable[str]) -> str:
    """Its first characters: PREFIX of them, or more where others begin alike."""
    length = PREFIX
    for other in others:
        while other != digest and length < len(digest) and other.startswith(digest[:length]):
            length += MIN_PREFIX
    return digest[:length]


def told_apart(name: str, digest: str, known: Iterable[tuple[str, str]]) -> str:
    """What ``--model`` takes for this one of the ``known`` models (name and digest): its name, with the
    digest if another model has that name too."""
    alike = [other for known_name, other in known if known_name == name]
    return name if len(alike) == 1 else f"{name}@{digest_prefix(digest, alike)}"


def ambiguous(wanted: ModelName, refs: Sequence[ModelRef], where: str) -> UsageError:
    """The error for a name that several different models have."""
    choices = " or ".join(f"{ref.name}@{ref.digest[:PREFIX]}" for ref in refs[:_LISTED])
    return UsageError(
        f"{len(refs)} different models are called {wanted} {where}",
        hint=f"Say which: {choices}{' or others' if len(refs) > _LISTED else ''}.",
    )


def near_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that ``name`` may be a misspelling of, the likeliest first."""
    by_plain: dict[str, str] = {}
    for each in known:
        by_plain.setdefault(plain_name(each), each)
        by_plain.setdefault(_short(each), each)
    name = name[:MAX_NAME_CHARS]
    found = get_close_matches(plain_name(name), by_plain, n=2 * most, cutoff=_CLOSE)
    found += get_close_matches(_short(name), by_plain, n=2 * most, cutoff=_CLOSE)
    return list(dict.fromkeys(by_plain[each] for each in found))[:most]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """``did you mean 'a' or 'b'?``, or, where nothing is near, what there is: ``otherwise`` and the names."""
    names = list(dict.fromkeys(known))
    if near := near_names(name, names):
        return f"did you mean {listed(near)}?"
    return f"{otherwise} {listed(names)}" if names else ""


def listed(names: Sequence[str]) -> str:
    return " or ".join(map(quoted, names[:_LISTED])) + (" or others" if len(names) > _LISTED else "")


def quoted(name: str) -> str:
    """Letters of other alphabets among Latin ones are shown by their numbers, since they may look alike."""
    return ascii(name) if any(letter.isascii() and letter.isalpha() for letter in name) else repr(name)


def plain_name(name: str) -> str:
    """A form that is the same for names that differ only in case, the ending ``.gguf``, and the number of a
    file of several."""
    return _PART.sub("", normalize("NFC", name).casefold().removesuffix(".gguf"))


def _short(name: str) -> str:
    name, colon, file = plain_name(name).partition(":")
    return name.rpartition("/")[2] + colon + file


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_NAME_CHARS else f"{text[:40]}…")
