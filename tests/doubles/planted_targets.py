"""Targets of ``scripts/fuzz`` with a fault each: what a campaign must find."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from scripts.lab.fuzz.target import Prepared, Target


def target(name: str, run: Callable[[bytes], str], **options: float) -> Target:
    return Target(name, lambda: Prepared([b"seed"], run), **options)


def raises(data: bytes) -> str:
    if data != b"seed":
        raise KeyError("not a way to refuse")
    return ""


def dies(data: bytes) -> str:
    if data != b"seed":
        os.abort()
    return ""


def hangs(data: bytes) -> str:
    while data != b"seed":
        time.sleep(1)
    return ""


def burns(data: bytes) -> str:
    end = time.process_time() + (0.05 if data != b"seed" else 0)
    while time.process_time() < end:
        pass
    return ""


def never_begins() -> Prepared:
    raise RuntimeError("cannot begin")


TARGETS = [
    target("raises", raises),
    target("dies", dies),
    target("hangs", hangs),
    target("burns", burns, slow_s=0.04),
    Target("never", never_begins),
]
