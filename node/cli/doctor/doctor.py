"""``swarm-node doctor``: checks of this machine and its swarm, each shown as soon as it is known."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from functools import partial

from ....swarm.errors import SwarmError
from ...doctor import computing, machine, models, network, software, swarm
from ...doctor.examination import Check, examine, in_thread
from ...doctor.finding import Finding, Health
from ..settings.config_file import read_config
from ..settings.resolve import problems_of
from ..shared.arguments import entry_of
from ..shared.output import answers, console, plural, print_json, shown
from ..shared.pasting import pasteable
from ..shared.progress import progress_shown

_MARKS = {
    Health.OK: "[green]ok[/]",
    Health.WARN: "[yellow]warn[/]",
    Health.FAIL: "[red]FAIL[/]",
    Health.UNKNOWN: "[dim]?[/]",
}
_INDENT = 5
COMPILE_S, SWARM_S, MODEL_S = 180.0, 60.0, 600.0
"""Seconds for checks that may take long: kernels of a slow machine, a far swarm, a large model's files."""


async def run_doctor(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """The exit code: 1 if something is broken."""
    findings: list[Finding] = []
    doing = "Looking at this machine and its swarm ..."
    with progress_shown(doing, speak=not arguments.json and console.is_terminal) as line:
        async for finding in examine(checks(arguments, parser)):
            findings.append(finding)
            if not arguments.json:
                line.stop()
                _show(finding, arguments)
                line.start()
    broken = sum(each.health is Health.FAIL for each in findings)
    doubtful = sum(each.health in (Health.WARN, Health.UNKNOWN) for each in findings)
    if arguments.json:
        print_json(
            {
                "healthy": not broken,
                "findings": [each.as_dict(share=arguments.share) for each in findings],
            }
        )
    elif broken:
        answers.print(f"{plural(broken, 'check')} failed.")
    else:
        answers.print(f"Nothing is broken{f'; {doubtful} to look at' if doubtful else ''}.")
    return 1 if broken else 0


def checks(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Sequence[Check]:
    from ..dashboard.options import DASHBOARD_PORT
    from ..gateway.options import GATEWAY_PORT
    from ..serving.options import BOOTSTRAP_PORT

    ports = {"bootstrap": BOOTSTRAP_PORT, "gateway": GATEWAY_PORT, "dashboard": DASHBOARD_PORT}
    found = [
        in_thread("Python", software.look_at_python),
        in_thread("packages", software.look_at_packages),
        in_thread("kernels", computing.look_at_kernels, COMPILE_S),
        in_thread("devices", computing.look_at_devices, COMPILE_S),
        in_thread("memory", machine.look_at_memory),
        in_thread("disk", machine.look_at_disk),
        in_thread("open files", machine.look_at_open_files),
        in_thread("own files", machine.look_at_own_files),
        in_thread("configuration", partial(_look_at_configuration, arguments, parser)),
        in_thread("services", _look_at_services),
        in_thread("model files", models.look_at_models, MODEL_S),
        in_thread("ports", partial(network.look_at_ports, ports)),
        in_thread("local network", network.look_at_interfaces),
        Check("p2pd", network.look_at_daemon),
        Check("relay", partial(network.look_at_relays, tuple(arguments.relay or ())), SWARM_S),
        Check("swarm", partial(swarm.look_at_swarm, entry_of(arguments)), SWARM_S),
    ]
    if arguments.model:
        found.append(in_thread("the model", partial(models.look_at_model, arguments.model), MODEL_S))
    return found


def _look_at_configuration(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser
) -> Sequence[Finding]:
    try:
        file = read_config(getattr(arguments, "config", None))
        problems = [] if file is None else problems_of(parser, file)
    except SwarmError as error:
        details = {"error": error.message}
        return [Finding("configuration", Health.FAIL, "its file cannot be read", error.hint, details)]
    if problems:
        details = dict(zip(map(str, range(1, len(problems) + 1)), problems, strict=True))
        advice = "`swarm-node config --check` says where."
        return [
            Finding(
                "configuration", Health.FAIL, f"{plural(len(problems), 'fault')} in its file", advice, details
            )
        ]
    return [Finding("configuration", Health.OK, "no file" if file is None else "its file is right")]


def _look_at_services() -> Sequence[Finding]:
    """Of this user; those of the system where root asks."""
    from ..service.definition import SERVICES
    from ..service.service import manager_of

    try:
        manager = manager_of(system=os.name == "posix" and os.geteuid() == 0)
        installed = [status for status in map(manager.status, SERVICES) if status.file]
    except SwarmError:  # neither systemd nor launchd runs here
        return []
    if not installed:
        return []
    stopped = [status for status in installed if not status.running]
    if not stopped:
        names = ", ".join(status.command for status in installed)
        return [Finding("services", Health.OK, f"running: {names}")]
    names = ", ".join(status.command for status in stopped)
    details = {status.command: status.lines[-1] for status in stopped if status.lines}
    advice = f"`swarm-node service status {stopped[0].command}` shows the last of its log."
    return [Finding("services", Health.WARN, f"not running: {names}", advice, details)]


def _show(finding: Finding, arguments: argparse.Namespace) -> None:
    """One line, and below it what to do and what it is about, folded to the terminal."""
    answers.print(f"{_MARKS[finding.health]} [bold]{shown(finding.check)}[/]: {shown(finding.says)}")
    if arguments.share:
        return
    lines = [pasteable(finding.advice, arguments)] if finding.advice else []
    if finding.health is not Health.OK:
        lines += [f"{name}: {value}" for name, value in finding.details.items() if value]
    width = (answers.width if answers.is_terminal else 110) - _INDENT
    for line in lines:
        for part in textwrap.wrap(line, max(20, width), break_long_words=False, break_on_hyphens=False):
            answers.print(f"{' ' * _INDENT}[dim]{shown(part)}[/]")
