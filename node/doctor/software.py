"""Python and the packages: their versions against the bounds that swarm-node itself declares."""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from ...swarm.runtime.extras import install_extra
from .finding import Finding, Health

OLDEST = (3, 11)
DISTRIBUTION = "swarm-node"


def look_at_python() -> Sequence[Finding]:
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return [
            Finding(
                "Python", Health.FAIL, f"{found}: it must be {wanted} or newer", f"Install Python {wanted}."
            )
        ]
    if struct.calcsize("P") < 8:
        return [
            Finding("Python", Health.FAIL, f"{found}: it must be a 64-bit one", "Install a 64-bit Python.")
        ]
    return [Finding("Python", Health.OK, found, details={"program": sys.executable})]


def look_at_packages() -> Sequence[Finding]:
    needed = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    always = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    lacks = list(_lacks(always))
    version = metadata.version(DISTRIBUTION)
    if lacks:
        advice = "In the checkout: pip install -e . --constraint scripts/constraints.txt"
        return [Finding("packages", Health.FAIL, f"{DISTRIBUTION} {version}: {'; '.join(lacks)}", advice)]
    return [
        Finding("packages", Health.OK, f"{DISTRIBUTION} {version} and the {len(always)} packages it needs"),
        *_extras(needed, always),
    ]


def _extras(needed: Sequence[Requirement], always: Sequence[Requirement]) -> Iterator[Finding]:
    """One line on what is not there and not needed."""
    provided = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    missing = []
    for extra in sorted(set(provided) - {"test", "dev"}):
        own = [
            each
            for each in needed
            if each.marker is not None and each not in always and each.marker.evaluate({"extra": extra})
        ]
        if own and any(_lacks([each for each in own if each.name != DISTRIBUTION])):
            missing.append(extra)
    if missing:
        yield Finding(
            "extras",
            Health.OK,
            f"not installed, and needed by some features only: {', '.join(missing)}",
            f"To install one, in the checkout: {install_extra(missing[0])}",
        )


def _lacks(requirements: Sequence[Requirement]) -> Iterator[str]:
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version} and must be {requirement.specifier}"
