"""``swarm-node service``: a command that starts with the machine, how it is, and its end."""

from __future__ import annotations

import argparse
import os
import sys
from difflib import get_close_matches

from ....swarm.errors import UsageError
from ..shared.output import answers, plural, print_json, print_text, shown
from .definition import SERVICES, Service, service_of
from .launchd import Launchd
from .manager import ServiceManager, ServiceStatus, check_installed
from .systemd import Systemd, runs_systemd


async def run_service(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    what = arguments.what
    if what is not None and what not in SERVICES:
        near = get_close_matches(what, SERVICES, 1)
        raise UsageError(
            f"{what} is no command that runs as a service",
            hint=f"Did you mean {near[0]}?" if near else f"These are: {', '.join(SERVICES)}.",
        )
    system = _is_root() if arguments.system is None else arguments.system
    if arguments.run_as and not system:
        raise UsageError(
            "--run-as is for a service of the machine",
            hint="Leave it out, or install with --system, as root.",
        )
    manager = manager_of(system=system, pretend=arguments.dry_run)
    if arguments.action == "status":
        _say_status(
            manager, [what] if what else list(SERVICES), as_json=arguments.json, named=what is not None
        )
    elif arguments.action == "uninstall":
        _uninstall(manager, what or "serve", arguments)
    else:
        user = (arguments.run_as or os.environ.get("SUDO_USER") or "root") if system else ""
        service = service_of(
            parser, what or "serve", arguments.words, os.environ, config=arguments.config, user=user
        )
        _install(manager, service, arguments)


def manager_of(*, system: bool, pretend: bool = False) -> ServiceManager:
    """Of this machine. ``pretend``: nothing will be run, so it need not run itself. Raises UsageError."""
    if sys.platform == "darwin":
        return Launchd(system=system)
    if pretend or runs_systemd():
        return Systemd(system=system)
    raise UsageError(
        "this machine runs neither systemd nor launchd",
        hint="`swarm-node service install serve --dry-run` prints what another manager has to start.",
    )


def _install(manager: ServiceManager, service: Service, arguments: argparse.Namespace) -> None:
    file = manager.file_of(service.command)
    if arguments.dry_run:
        text, steps = manager.text_of(service), list(manager.steps(service))
        if arguments.json:
            print_json({"file": str(file), "text": text, "steps": steps})
        else:
            print_text(
                "".join(f"{line}\n" for line in (f"# {file}", text, *(f"# then: {step}" for step in steps)))
            )
        return
    _check_user(service.user)
    remark = manager.install(service)
    if arguments.json:
        print_json({"file": str(file), "remark": remark, **manager.status(service.command).as_dict()})
        return
    answers.print(f"[green]Installed and started[/] {service.title}: {shown(str(file))}")
    if remark:
        answers.print(f"[yellow]{shown(remark)}[/]")
    answers.print(f"  its log: {shown(manager.logs(service.command))}")
    answers.print(f"  how it is: swarm-node service status {service.command}")


def _check_user(user: str) -> None:
    """Raises UsageError. systemd would take a name that nobody has, and fail at each start."""
    if not user:
        return
    import pwd  # here: Windows has none, nor such services

    try:
        pwd.getpwnam(user)
    except KeyError:
        raise UsageError(
            f"this machine has no user {user}", hint="Name one that it has: --run-as USER"
        ) from None


def _uninstall(manager: ServiceManager, command: str, arguments: argparse.Namespace) -> None:
    file = manager.file_of(command)
    if arguments.dry_run:
        check_installed(file)
    else:
        manager.uninstall(command)
    if arguments.json:
        print_json({"file": str(file), "removed": not arguments.dry_run})
    else:
        done = "Would stop it and remove" if arguments.dry_run else "Stopped, and removed"
        answers.print(f"{done} {shown(str(file))}.")


def _say_status(manager: ServiceManager, commands: list[str], *, as_json: bool, named: bool) -> None:
    found = [manager.status(command) for command in commands]
    if not named:
        found = [status for status in found if status.file]
    if as_json:
        print_json({"services": [status.as_dict() for status in found]})
    elif not found:
        answers.print(
            "No service is installed. To serve as one: `swarm-node service install serve -- --model NAME`"
        )
    for status in [] if as_json else found:
        _say(manager, status)


def _say(manager: ServiceManager, status: ServiceStatus) -> None:
    colour = "green" if status.running else "yellow"
    since = f" since {status.since}" if status.since else ""
    again = f", started again {plural(status.restarts, 'time')}" if status.restarts else ""
    answers.print(f"swarm-node {status.command}: [{colour}]{shown(status.state)}[/]{shown(since + again)}")
    if status.file:
        starts = "starts with the machine" if status.enabled else "does not start with the machine"
        answers.print(f"  {shown(status.file)}; it {starts}")
        for line in status.lines:
            answers.print(f"  | {shown(line)}")
        answers.print(f"  all of its log: {shown(manager.logs(status.command))}")
    if status.hint:
        answers.print(f"  [yellow]{shown(status.hint)}[/]")


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
