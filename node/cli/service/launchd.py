"""Services as launchd's jobs: daemons of the machine, or agents of the user who installs them."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
from pathlib import Path

from .calls import ask, call
from .definition import Service
from .manager import ServiceStatus, check_installed, write_definition

RESTART_S = 30
"""Seconds between two starts, at least."""

LOG_LINES = 5
LOG_BYTES = 16_384
"""The end of a log in which its last lines are looked for."""


class Launchd:
    def __init__(self, *, system: bool) -> None:
        self._system = system
        self._domain = "system" if system else f"gui/{os.getuid()}"

    def file_of(self, command: str) -> Path:
        folder = "LaunchDaemons" if self._system else "LaunchAgents"
        return self._library() / folder / f"{_label(command)}.plist"

    def text_of(self, service: Service) -> str:
        log = str(self._log(service.command))
        job: dict[str, object] = {
            "Label": _label(service.command),
            "ProgramArguments": list(service.words),
            "EnvironmentVariables": dict(service.environment),
            "WorkingDirectory": str(service.folder),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": RESTART_S,
            "ExitTimeOut": round(service.stop_s),
            "AbandonProcessGroup": False,
            "SoftResourceLimits": {"NumberOfFiles": 65536},
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "Umask": 0o077,
        }
        if self._system and service.user:
            job["UserName"] = service.user
        return plistlib.dumps(job, sort_keys=False).decode()

    def steps(self, service: Service) -> list[str]:
        return [shlex.join(self._start(service.command))]

    def install(self, service: Service) -> str:
        write_definition(self.file_of(service.command), self.text_of(service))
        ask(["launchctl", "bootout", self._target(service.command)])  # an earlier one, if there is one
        call(self._start(service.command))
        return ""

    def uninstall(self, command: str) -> None:
        file = self.file_of(command)
        check_installed(file)
        ask(["launchctl", "bootout", self._target(command)])
        file.unlink()

    def status(self, command: str) -> ServiceStatus:
        file = self.file_of(command)
        if not file.exists():
            return ServiceStatus(command, hint=f"`swarm-node service install {command}`")
        said = ask(["launchctl", "print", self._target(command)])
        values = dict(re.findall(r"^\t([\w ]+) = (.*)$", said, re.MULTILINE))
        running = values.get("state") == "running"
        return ServiceStatus(
            command,
            str(file),
            enabled=bool(values),
            running=running,
            state=values.get("state", "not loaded"),
            restarts=max(0, int(values.get("runs", "1")) - 1),
            lines=tuple(_last_lines(self._log(command))),
            hint="" if running else f"Start it: {shlex.join(self._start(command))}",
        )

    def logs(self, command: str) -> str:
        return shlex.join(["tail", "-f", str(self._log(command))])

    def _start(self, command: str) -> list[str]:
        return ["launchctl", "bootstrap", self._domain, str(self.file_of(command))]

    def _target(self, command: str) -> str:
        return f"{self._domain}/{_label(command)}"

    def _library(self) -> Path:
        return Path("/Library") if self._system else Path.home() / "Library"

    def _log(self, command: str) -> Path:
        return self._library() / "Logs" / f"{_label(command)}.log"


def _label(command: str) -> str:
    return f"swarm-node.{command}"


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
