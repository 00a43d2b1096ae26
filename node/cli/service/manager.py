"""What the managers of services have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ....swarm.errors import UsageError
from ....swarm.runtime.state_files import replace_file
from .definition import Service


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """``file``: of the service, "" if it is not installed. ``since``: when it started or ended, as the system
    says it. ``lines``: the last of its log. ``hint``: what to do, if there is something to do."""

    command: str
    file: str = ""
    enabled: bool = False
    running: bool = False
    state: str = "not installed"
    since: str = ""
    restarts: int = 0
    lines: tuple[str, ...] = ()
    hint: str = ""

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "lines": list(self.lines)}


class ServiceManager(Protocol):
    """``logs``: the command that shows what a service logs."""

    def file_of(self, command: str) -> Path: ...

    def text_of(self, service: Service) -> str:
        """What the file of the service holds."""

    def steps(self, service: Service) -> Sequence[str]:
        """The commands that ``install`` runs, for people."""

    def install(self, service: Service) -> str:
        """Write the file, start the service, and have it started with the machine. Returns a remark, or
        "". Raises SwarmError."""

    def uninstall(self, command: str) -> None:
        """Stop the service, and remove its file. Raises SwarmError."""

    def status(self, command: str) -> ServiceStatus: ...

    def logs(self, command: str) -> str: ...


def write_definition(file: Path, text: str) -> None:
    """As the system reads it: of its owner, and open to all. Raises UsageError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, text)
        file.chmod(0o644)
    except OSError as error:
        raise UsageError(
            f"cannot write {file}: {error.strerror or error}",
            hint="A service of the machine is installed as root; one of yours with --user.",
        ) from None


def check_installed(file: Path) -> None:
    """Raises UsageError where there is no such file, which has the name of its service."""
    if not file.exists():
        raise UsageError(
            f"{file.stem} is not installed: there is no {file}",
            hint="`swarm-node service status` shows what is.",
        )
