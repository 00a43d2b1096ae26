"""The text of a systemd unit. Pure."""

from __future__ import annotations

import re

from ....swarm.errors import UsageError
from .definition import Service

RESTART_S, RESTART_EVENLY_S = 5, 20
"""Seconds until the first new start, where each later one waits longer, and where all wait alike."""

RESTART_MOST_S = 300
"""Seconds until a new start when many have failed, where systemd can wait longer each time."""

RESTART_STEPS_SINCE = 254
"""The version of systemd since which it can."""

ENDED = (129, 143)
"""Exit codes of a process that was asked to end before it had begun: no failure."""

NOT_AGAIN = (2, 8)
"""Exit codes after which another start would end in the same way: wrong usage, a copied identity."""

_SHELTER = """\
NoNewPrivileges=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectHostname=yes
PrivateTmp=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
"""
"""For a service of the system. Not among them: PrivateDevices and what implies it (graphics cards),
MemoryDenyWriteExecute (torch compiles), ProtectHome (models and keys are there)."""

_BYTES = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")
"""Control characters, which may end a line, and bytes of words that are no text, as Python holds them."""

_USER_SHELTER = "NoNewPrivileges=yes\n"
"""A user's manager has no rights to set up more, and fails to start what asks for it."""


def unit_text(service: Service, *, system: bool, version: int) -> str:
    """``version``: of systemd, 0 if unknown. Raises UsageError for a folder that no unit can name."""
    restarts = (
        f"RestartSec={RESTART_S}\nRestartSteps=6\nRestartMaxDelaySec={RESTART_MOST_S}"
        if version >= RESTART_STEPS_SINCE
        else f"RestartSec={RESTART_EVENLY_S}"
    )
    online = "Wants=network-online.target\nAfter=network-online.target\n" if system else ""
    if not service.user.isprintable():  # a line break would begin another setting
        raise UsageError(f"{service.user!r} is no name of a user", hint="Name one that this machine has.")
    user = f"User={service.user}\n" if system and service.user else ""
    variables = "".join(
        f"Environment={_quoted(f'{name}={value}')}\n" for name, value in service.environment.items()
    )
    return f"""\
# `swarm-node service install {service.command}` writes this file, and `uninstall` removes it.
[Unit]
Description={service.title}
StartLimitIntervalSec=0
{online}
[Service]
Type=exec
ExecStart={" ".join(_quoted(word.replace("$", "$$")) for word in service.words)}
WorkingDirectory={_path(str(service.folder))}
{variables}{user}Restart=on-failure
{restarts}
SuccessExitStatus={" ".join(map(str, ENDED))}
RestartPreventExitStatus={" ".join(map(str, NOT_AGAIN))}
# The process drains; its daemon, in the same group, is not told before it.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={service.stop_s:.0f}
LimitNOFILE=65536
SyslogIdentifier={service.title.replace(" ", "-")}
{_SHELTER if system else _USER_SHELTER}
[Install]
WantedBy={"multi-user.target" if system else "default.target"}
"""


def _path(folder: str) -> str:
    """Of a path systemd takes the whole line, without quotes."""
    if not folder.isprintable() or folder != folder.strip() or folder.endswith("\\"):
        raise UsageError(
            f"systemd starts nothing in the folder {folder!r}",
            hint="Call it from a folder whose name has no control characters, and neither a space nor a "
            "backslash at its end.",
        )
    return folder.replace("%", "%%")


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@/:.,=+-]+", word, re.ASCII):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{_BYTES.sub(_as_hex, escaped)}"'


def _as_hex(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]) & 0xFF:02x}"
