"""Services as units of systemd: of the machine, or of the user who installs them."""

from __future__ import annotations

import getpass
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from .calls import ServiceManagerError, ask, call
from .definition import Service, unit_name
from .manager import ServiceStatus, check_installed, write_definition
from .systemd_unit import NOT_AGAIN, unit_text

SYSTEM_FOLDER = Path("/etc/systemd/system")
LOG_LINES = 5

_NO_SESSION = (
    "A user's services need a session: log in as that user, not by su or sudo; or install with --system."
)


def runs_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


class Systemd:
    def __init__(self, *, system: bool) -> None:
        self._system = system
        self._systemctl = ["systemctl"] if system else ["systemctl", "--user"]

    def file_of(self, command: str) -> Path:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        folder = SYSTEM_FOLDER if self._system else home / "systemd/user"
        return folder / f"{unit_name(command)}.service"

    def text_of(self, service: Service) -> str:
        return unit_text(service, system=self._system, version=_version())

    def steps(self, service: Service) -> list[str]:
        return [shlex.join(words) for words in self._steps(service)]

    def install(self, service: Service) -> str:
        write_definition(self.file_of(service.command), self.text_of(service))
        for words in self._steps(service):
            call(words, hint="" if self._system else _NO_SESSION)
        return "" if self._system else _linger()

    def uninstall(self, command: str) -> None:
        file = self.file_of(command)
        check_installed(file)
        call([*self._systemctl, "disable", "--now", unit_name(command)])
        file.unlink()
        call([*self._systemctl, "daemon-reload"])

    def status(self, command: str) -> ServiceStatus:
        file, name = self.file_of(command), unit_name(command)
        if not file.exists():
            return ServiceStatus(command, hint=f"`swarm-node service install {command}`")
        wanted = "ActiveState,SubState,UnitFileState,StateChangeTimestamp,NRestarts,ExecMainStatus"
        said = ask([*self._systemctl, "show", name, "--property", wanted])
        values = dict(re.findall(r"^(\w+)=(.*)$", said, re.MULTILINE))
        lines = ask(
            [*self._journal(name), "-n", str(LOG_LINES), "-o", "cat", "--no-pager", "-q"]
        ).splitlines()
        running = values.get("ActiveState") == "active"
        return ServiceStatus(
            command,
            str(file),
            enabled=values.get("UnitFileState") == "enabled",
            running=running,
            state=f"{values.get('ActiveState', 'unknown')} ({values.get('SubState', '')})",
            since=values.get("StateChangeTimestamp", ""),
            restarts=int(values.get("NRestarts") or 0),
            lines=tuple(lines),
            hint="" if running else self._what_to_do(name, values),
        )

    def logs(self, command: str) -> str:
        return shlex.join([*self._journal(unit_name(command)), "-f"])

    def _steps(self, service: Service) -> list[list[str]]:
        name = unit_name(service.command)
        return [
            [*self._systemctl, "daemon-reload"],
            [*self._systemctl, "enable", name],
            [*self._systemctl, "restart", name],  # which starts one that does not run
        ]

    def _journal(self, name: str) -> list[str]:
        return ["journalctl", "--unit" if self._system else "--user-unit", name]

    def _what_to_do(self, name: str, values: Mapping[str, str]) -> str:
        start = shlex.join([*self._systemctl, "restart", name])
        code = values.get("ExecMainStatus", "")
        if values.get("ActiveState") == "activating":
            return f"It ended with exit code {code} and is started again by itself: its log says why"
        if code in map(str, NOT_AGAIN):
            return f"It ended with exit code {code} and stays down: mend what its log says, then {start}"
        return f"Start it: {start}"


def _version() -> int:
    """0 where systemd cannot be asked."""
    try:
        found = re.match(r"systemd (\d+)", ask(["systemctl", "--version"]))
    except ServiceManagerError:
        return 0
    return int(found[1]) if found else 0


def _linger() -> str:
    """A user's services start with the machine, and outlive a session, only if the system lets them."""
    user = getpass.getuser()
    try:
        call(["loginctl", "enable-linger", user])
    except ServiceManagerError:
        return f"It ends when you log out, until you run: sudo loginctl enable-linger {shlex.quote(user)}"
    return ""
