"""launchd's jobs: what is written."""

from __future__ import annotations

import plistlib
from pathlib import Path

import pytest

from swarm_node.node.cli.service.definition import Service
from swarm_node.node.cli.service.launchd import Launchd

SERVICE = Service(
    "serve", ("/usr/bin/python3", "-m", "x", "a <b> & c"), {"PATH": "/bin"}, Path("/tmp"), 50.0, user="me"
)


@pytest.mark.parametrize("system", [True, False])
def test_a_job_says_all_of_a_service(system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 501, raising=False)  # Windows has none
    manager = Launchd(system=system)
    job = plistlib.loads(manager.text_of(SERVICE).encode())
    assert job["ProgramArguments"] == ["/usr/bin/python3", "-m", "x", "a <b> & c"]
    assert job["EnvironmentVariables"] == {"PATH": "/bin"}
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["ExitTimeOut"] == 50
    assert job["RunAtLoad"] is True
    assert ("UserName" in job) is system
    assert manager.file_of("serve").name == f"{job['Label']}.plist"
    domain = "system" if system else "gui/501"
    assert manager.steps(SERVICE) == [f"launchctl bootstrap {domain} {manager.file_of('serve')}"]
