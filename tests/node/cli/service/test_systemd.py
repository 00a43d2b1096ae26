"""Units of systemd: what is written, and what runs if a unit is started as systemd would start it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.service.definition import AFTER_DRAIN_S, Service, service_of
from swarm_node.node.cli.service.systemd import Systemd
from swarm_node.node.cli.service.systemd_unit import unit_text
from swarm_node.swarm.errors import UsageError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="has neither systemd nor such signals")

BOOTSTRAP = ["--host", "127.0.0.1", "--port", "0", "--no-mdns", "--json"]


def read_unit(text: str) -> dict[str, list[str]]:
    """Keys of all sections, with values as systemd understands them."""
    found: dict[str, list[str]] = {}
    for line in re.split(r"[\n\r]", text):
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value.replace("%%", "%"))
    return found


def words_of(value: str) -> list[str]:
    """Of an ExecStart or an Environment. Quotes are those of a shell, and escapes those of C."""
    return [
        re.sub(r"\\x(..)", lambda byte: os.fsdecode(bytes.fromhex(byte[1])), word.replace("$$", "$"))
        for word in shlex.split(value)
    ]


def service(*words: str, user: str = "") -> Service:
    return service_of(build_parser(), "bootstrap", words, dict(os.environ), user=user)


word = st.text(st.characters(codec="utf-8", exclude_characters="\0\\") | st.sampled_from("\r\n\t\udcff"))


@given(st.lists(word.filter(bool)), word)
def test_words_come_out_as_they_went_in(words: list[str], value: str) -> None:
    told = Service("serve", ("/usr/bin/python", *words), {"SWARM_NODE_X": value}, Path("/a b"), 50.0)
    unit = read_unit(unit_text(told, system=True, version=254))
    assert words_of(unit["ExecStart"][0]) == ["/usr/bin/python", *words]
    assert words_of(unit["Environment"][0].replace("$", "$$")) == [f"SWARM_NODE_X={value}"]
    assert unit["WorkingDirectory"] == ["/a b"]


@pytest.mark.parametrize("folder", ["/a\nUser=root", "/a\r", "/a ", "/a\\"])
def test_a_folder_never_adds_to_a_unit(folder: str) -> None:
    told = Service("serve", ("/usr/bin/python",), {}, Path(folder), 50.0)
    with pytest.raises(UsageError, match="systemd starts nothing in"):
        unit_text(told, system=True, version=254)


def test_a_user_never_adds_to_a_unit() -> None:
    with pytest.raises(UsageError, match="is no name of a user"):
        unit_text(service(user="root\nExecStart=/bin/x"), system=True, version=254)


def test_it_has_time_to_drain_and_is_started_again_later_and_later() -> None:
    told = service_of(build_parser(), "serve", ["--model", "x", "--drain-seconds", "90"], {}, user="me")
    unit = read_unit(unit_text(told, system=True, version=254))
    assert unit["TimeoutStopSec"] == [f"{90 + AFTER_DRAIN_S:.0f}"]
    assert (unit["KillMode"], unit["User"], unit["Restart"]) == (["mixed"], ["me"], ["on-failure"])
    assert unit["RestartMaxDelaySec"] == ["300"]
    assert unit["WantedBy"] == ["multi-user.target"]
    older = read_unit(unit_text(told, system=False, version=252))
    assert "RestartMaxDelaySec" not in older
    assert "User" not in older
    assert older["WantedBy"] == ["default.target"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("system", [True, False])
def test_systemd_understands_all_of_it(tmp_path: Path, system: bool) -> None:
    file = tmp_path / "swarm-node-bootstrap.service"
    file.write_text(Systemd(system=system).text_of(service("--announce", "/dns4/a%b$c/tcp/1")))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60
    )
    assert [line for line in done.stderr.splitlines() if "swarm-node-bootstrap" in line] == []


def test_variables_and_the_file_of_options_are_those_of_where_it_is_installed(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text("[serve]\ndrain-seconds = 5\nmodel = 'x'\n")
    environ = {"PATH": "/bin", "SWARM_NODE_SERVE_PORT": "4000", "HF_TOKEN": "secret", "OTHER": "1"}
    told = service_of(build_parser(), "serve", [], environ, config=str(config))
    assert told.environment == {"PATH": "/bin", "SWARM_NODE_SERVE_PORT": "4000"}
    assert f"--config={config}" in told.words
    assert told.stop_s == 5 + AFTER_DRAIN_S


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prot", "1"], "no option --prot"),
        (["--join", "swn1secret"], "an invite is a secret"),
        (["--initial-peers", "nonsense"], "nonsense"),
    ],
)
def test_what_the_command_would_refuse_is_not_installed(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        service(*words)
    assert said in error.value.message


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.swarm
def test_a_node_is_itself_again_after_a_restart(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a restart of the machine does: all is killed, and what the unit says is started from nothing."""
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    unit = read_unit(unit_text(service(*BOOTSTRAP), system=True, version=252))

    def start() -> subprocess.Popen[bytes]:
        variables = dict(words_of(value)[0].split("=", 1) for value in unit["Environment"])
        process = subprocess.Popen(
            words_of(unit["ExecStart"][0]),
            env={**variables, "HOME": str(tmp_path)},
            cwd=unit["WorkingDirectory"][0],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    def peer_id(process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        events = (json.loads(line) for line in process.stdout)
        return next(event["peer_id"] for event in events if event["event"] == "online")

    first = start()
    name = peer_id(first)
    first.kill()
    first.wait()
    again = start()
    assert peer_id(again) == name
    again.send_signal(getattr(signal, unit["KillSignal"][0]))
    assert again.wait(float(unit["TimeoutStopSec"][0])) == 0


FAKE = f"""#!{sys.executable}
import os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(os.path.basename(sys.argv[0]), *sys.argv[1:], file=calls)
if "--version" in sys.argv: print("systemd 252 (252.1)")
if "show" in sys.argv: print(os.environ["SHOWN"])
if "journalctl" in sys.argv[0]: print("Online: \\x1b[31mall blocks")
if os.environ.get("REFUSED", "-") in sys.argv: sys.exit("Access denied")
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that note how they were called, in the file that is returned, in place of systemd's."""
    for name in ("systemctl", "journalctl", "loginctl"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(FAKE)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SHOWN", "ActiveState=active\nSubState=running\nUnitFileState=enabled\nNRestarts=2")
    return tmp_path / "calls"


def test_install_status_and_uninstall(systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Systemd(system=False)
    assert manager.status("bootstrap").hint == "`swarm-node service install bootstrap`"
    assert manager.install(service(*BOOTSTRAP)) == ""
    file = manager.file_of("bootstrap")
    assert file.stat().st_mode & 0o777 == 0o644
    assert [line for line in systemctl.read_text().splitlines() if line.startswith("systemctl --user")] == [
        "systemctl --user daemon-reload",
        "systemctl --user enable swarm-node-bootstrap",
        "systemctl --user restart swarm-node-bootstrap",
    ]
    status = manager.status("bootstrap")
    assert (status.enabled, status.running, status.state, status.restarts) == (
        True,
        True,
        "active (running)",
        2,
    )
    assert status.lines == ("Online: \x1b[31mall blocks",)

    monkeypatch.setenv("SHOWN", "ActiveState=failed\nExecMainStatus=8")
    assert "stays down" in manager.status("bootstrap").hint
    manager.uninstall("bootstrap")
    assert "systemctl --user disable --now swarm-node-bootstrap" in systemctl.read_text()
    assert not file.exists()
    with pytest.raises(UsageError, match="is not installed"):
        manager.uninstall("bootstrap")


def test_a_refusal_says_what_was_asked_and_why(systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSED", "enable")
    with pytest.raises(Exception, match="systemctl --user enable swarm-node-bootstrap failed: Access denied"):
        Systemd(system=False).install(service(*BOOTSTRAP))


def test_without_lingering_a_person_is_told(systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSED", "enable-linger")
    assert "sudo loginctl enable-linger" in Systemd(system=False).install(service(*BOOTSTRAP))
