"""What a volunteer's limits depend on, as the system tells it now. What it does not tell is None."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from datetime import time as TimeOfDay
from pathlib import Path

import psutil

_HID_IDLE = re.compile(r'"HIDIdleTime" = (\d+)')
_TOOL_S = 2.0
"""Seconds for a tool of the system to answer."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """``others_load``: the part of all processors, 0 to 1, that other processes took since the state before.
    ``input_idle_s``: seconds since somebody typed or pointed: on Linux in a terminal, on macOS anywhere.
    ``temperature_c``: of the hottest sensor."""

    now: TimeOfDay
    others_load: float | None = None
    input_idle_s: float | None = None
    on_mains: bool | None = None
    temperature_c: float | None = None


class MachineReader:
    """``read`` in a thread: some systems tell slowly."""

    def __init__(self) -> None:
        self._busy = self._own = 0.0
        self._at = time.monotonic()
        self._others_load()  # from here on

    def read(self) -> MachineState:
        return MachineState(
            now=datetime.now().time(),
            others_load=self._others_load(),
            input_idle_s=_input_idle_s(),
            on_mains=_on_mains(),
            temperature_c=_temperature_c(),
        )

    def _others_load(self) -> float | None:
        busy, own, now = _busy_s(), own_s(), time.monotonic()
        seconds = (now - self._at) * (psutil.cpu_count() or 1)
        others = busy - self._busy - max(0.0, own - self._own)
        self._busy, self._own, self._at = busy, own, now
        return min(max(others / seconds, 0.0), 1.0) if seconds > 0 else None


def _busy_s() -> float:
    """Seconds that all processors have computed since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def own_s() -> float:
    """Seconds that this process and its children (the network's daemon) have computed."""
    own = psutil.Process()
    return sum(_computed_s(process) for process in (own, *own.children(recursive=True)))


def _computed_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has just ended
        return 0.0
    return times.user + times.system


def _input_idle_s() -> float | None:
    if sys.platform == "darwin":
        return _idle_of_ioreg()
    terminals = [*Path("/dev/pts").glob("[0-9]*"), *Path("/dev").glob("tty[0-9]*")]
    # As `w` does: a terminal's file was last read when somebody last typed.
    read_at = list(_access_times(terminals))
    return max(0.0, time.time() - max(read_at)) if read_at else None


def _access_times(files: Iterable[Path]) -> Iterable[float]:
    for file in files:
        try:
            yield os.stat(file).st_atime
        except OSError:  # it has just been closed
            continue


def _idle_of_ioreg() -> float | None:
    try:
        told = subprocess.run(
            ["ioreg", "-c", "IOHIDSystem", "-d", "4"], capture_output=True, text=True, timeout=_TOOL_S
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = _HID_IDLE.search(told)
    return int(match[1]) / 1e9 if match else None


def _on_mains() -> bool | None:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return True if battery is None else battery.power_plugged  # a machine without a battery


def _temperature_c() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    sensors = psutil.sensors_temperatures()
    told = [each.current for group in sensors.values() for each in group if each.current is not None]
    return max(told, default=None)
