"""The wide-area laboratory keeps its promises, and a swarm over it answers as one on loopback does."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import HIDDEN
from scripts.lab.wan_lab.controls import ring
from scripts.lab.wan_lab.figures import datagram_socket, goodput, loss, round_trips
from scripts.lab.wan_lab.kernel import namespace_inode, processes_in
from scripts.lab.wan_lab.network import WanLab, why_not_here
from scripts.lab.wan_lab.schedule import following, parse_schedule
from scripts.lab.wan_lab.swarm import CLIENT, WanSwarm
from swarm_node.client import Generation, SwarmModel
from tests import ROOT
from tests.swarms.harness import EXACT, ONE_THREAD

pytestmark = pytest.mark.skipif(
    bool(why_not_here()), reason=f"no wide-area laboratory here: {why_not_here()}"
)

LATE_S = 0.004
"""How much later than asked the fastest of several datagrams may come back on a busy machine."""


@pytest.fixture
def lab() -> Iterator[WanLab]:
    """Machines ``a`` and ``b``, joined without delay."""
    with WanLab() as made:
        made.add("a")
        made.add("b")
        yield made


# The links.


def test_round_trips_take_what_was_asked_and_a_little(lab: WanLab) -> None:
    for asked in (0.005, 0.06):
        lab.set_all(rtt_s=asked)
        assert asked <= min(round_trips(lab, "a", "b", 12)) < asked + LATE_S
    lab.set_link("a", "b", latency_s=0.01, one_way=True)
    lab.set_link("b", "a", latency_s=0.03, one_way=True)
    assert 0.04 <= min(round_trips(lab, "a", "b", 8)) < 0.04 + LATE_S


def test_jitter_spreads_times_and_keeps_the_order(lab: WanLab) -> None:
    lab.set_all(rtt_s=0.02, jitter_s=0.008)
    times = round_trips(lab, "a", "b", 40)
    assert min(times) >= 0.004
    assert statistics.pstdev(times) > 0.003, "evenly from ± 8 ms twice has a deviation of 6.5 ms"
    with datagram_socket(lab, "a") as here, datagram_socket(lab, "b") as there:
        for number in range(100):
            here.sendto(bytes([number]), there.getsockname())
        assert [there.recv(1)[0] for _ in range(100)] == list(range(100))


def _reaches(lab: WanLab, sender: str, receiver: str, rate: float) -> bool:
    """Whether a flow gets most of the rate, and never more: a busy machine makes it less for a while."""
    for _ in range(8):
        measured = goodput(lab, sender, receiver, 0.8)
        assert measured < rate
        if measured > 0.75 * rate:
            return True
    return False


def test_bandwidth_is_that_of_the_link_and_of_the_access(lab: WanLab) -> None:
    lab.set_all(rtt_s=0.01, rate=20e6)
    assert _reaches(lab, "a", "b", 20e6)
    assert lab.traffic("a", "b").bytes > 1e6
    lab.set_all(rate=None)
    lab.set_machine("b", up=2e6, down=8e6)
    assert _reaches(lab, "a", "b", 8e6)
    assert _reaches(lab, "b", "a", 2e6)


def test_losses_are_as_many_as_asked(lab: WanLab) -> None:
    assert loss(lab, "a", "b", 300) == 0
    lab.set_link("a", "b", loss=0.2, one_way=True)
    assert loss(lab, "a", "b", 2000) == pytest.approx(0.2, abs=0.04)
    assert loss(lab, "b", "a", 300) == 0
    assert lab.traffic("a", "b").lost == pytest.approx(400, abs=80)


def test_a_partition_stops_everything_and_heals(lab: WanLab) -> None:
    lab.add("c")
    lab.set_all(rtt_s=0.04)
    with lab.inside("b"):
        server = socket.create_server((lab.address("b"), 0))
    with server, lab.inside("a"):
        here = socket.create_connection(server.getsockname(), timeout=5)
        there, _ = server.accept()
    with here, there:
        there.settimeout(5)
        here.sendall(b"on its way")
        lab.partition("a", "b")
        assert round_trips(lab, "a", "c", 1), "others are not concerned"
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(100)
        assert lab.traffic("a", "b").cut > 0
        lab.heal()
        there.settimeout(5)
        assert there.recv(100) == b"on its way", "TCP sends again"
    lab.partition("a")
    assert lab.link("a", "c").is_cut
    assert lab.link("c", "a").is_cut
    assert not lab.link("b", "c").is_cut
    lab.heal("a", ["c"])
    assert lab.link("a", "b").is_cut
    assert not lab.link("a", "c").is_cut


def test_behind_a_nat_only_answers_come_in(lab: WanLab) -> None:
    inner = lab.add("inner", takes_strangers=False)
    with datagram_socket(lab, "inner") as inside, datagram_socket(lab, "a") as outside:
        outside.sendto(b"stranger", inside.getsockname())
        inside.sendto(b"hello", outside.getsockname())
        text, address = outside.recvfrom(100)
        assert (text, address) == (b"hello", inside.getsockname())
        outside.sendto(b"answer", address)
        assert inside.recv(100) == b"answer"
        assert lab.traffic("a", "inner").refused == 1
        with datagram_socket(lab, "b") as other:
            other.sendto(b"of another", address)
            outside.sendto(b"again", address)
            assert inside.recv(100) == b"again"
    with lab.inside("inner"):
        server = socket.create_server((inner, 0))
    with server, lab.inside("b"), pytest.raises(TimeoutError):
        socket.create_connection(server.getsockname(), timeout=0.3)


def test_a_schedule_happens_at_its_times(lab: WanLab) -> None:
    done: list[tuple[str, float]] = []
    began = time.monotonic()
    changes = parse_schedule("0.1s heal; 0.05s cut a b; 0.2s all rtt=30ms loss=1%; 999s cut a")
    with following(lab, changes, lambda text: done.append((text, time.monotonic() - began))):
        while len(done) < 3:
            time.sleep(0.01)
    assert [text.split()[0] for text, _ in done] == ["0.05s", "0.1s", "0.2s"]
    assert all(0 <= at - float(text.split("s")[0]) < 0.1 for text, at in done)
    assert lab.link("b", "a").latency_s == 0.015
    assert lab.link("b", "a").loss == 0.01
    assert not lab.link("b", "a").is_cut
    with pytest.raises(ValueError, match="'z'"), following(lab, parse_schedule("1s cut z")):
        pass


def test_a_control_takes_its_ways_and_its_busy_times(lab: WanLab) -> None:
    lab.add("c")
    lab.set_all(rtt_s=0.04)
    with ring(lab, ["a", "b", "c"], "sockets") as around:
        for busy_s in ([0.002, 0.005, 0.001], [0.0, 0.0, 0.0]):
            found = around.measure(busy_s, 604, 3)
            assert found["busy_s"] >= sum(busy_s)
            assert found["seconds"] >= 3 * 0.02 + found["busy_s"]
    assert lab.traffic("a", "b").bytes > (3 + 3) * 604


# What stays behind.


def test_nothing_stays_and_nothing_else_is_touched() -> None:
    before = os.listdir("/sys/class/net")
    with WanLab() as lab:
        lab.add("a")
        child = lab.popen("a", [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(99)"])
        namespace = namespace_inode(lab.machine("a").namespace)
        assert processes_in({namespace}) == [child.pid]
        assert os.listdir("/sys/class/net") == before
    assert child.poll() == -signal.SIGTERM
    assert processes_in({namespace}) == []
    assert os.listdir("/sys/class/net") == before


LAB_TO_KILL = """
import signal, sys
from scripts.lab.wan_lab.network import WanLab
lab = WanLab()
lab.add("a")
argv = [sys.executable, "-c", "import signal as s, time; s.signal(15, s.SIG_IGN); time.sleep(99)"]
child = lab.popen("a", argv)
print(child.pid, flush=True)
signal.pause()
"""


def test_a_killed_laboratory_leaves_no_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAB_TO_KILL], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stdout is not None
        pid = int(lab.stdout.readline())
        assert os.path.exists(f"/proc/{pid}")
        lab.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_takes_its_network_down_when_told_to_stop(number: int) -> None:
    script = [sys.executable, "-m", "scripts.lab.wan_lab", "shell", "--", "sleep", "98.7"]
    with subprocess.Popen(
        script, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as shell:
        assert shell.stderr is not None
        for line in shell.stderr:
            if "b is" in line:
                break
        while not (running := _running("sleep", "98.7")):
            time.sleep(0.02)
        shell.send_signal(number)
        assert shell.wait(20) == 128 + number
        assert "Traceback" not in shell.stderr.read()
    assert not [pid for pid in running if os.path.exists(f"/proc/{pid}")]


def _running(*argv: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdecimal() and Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")[:-1] == [
                word.encode() for word in argv
            ]:
                found.append(int(entry))
        except OSError:  # gone meanwhile
            continue
    return found


# A swarm over it.

PROMPT = [1 + 7 * n % 500 for n in range(40)]
OPTIONS = {"max_new_tokens": 20, "ignore_eos": True}
WAY_S = 0.025


@pytest.fixture(scope="module")
def wan_swarm(tiny: Path, fork_server: ForkServer) -> Iterator[WanSwarm]:
    """In float32 over two machines, with a third that can take the second one's place."""
    options = [*ONE_THREAD, *EXACT]
    with (
        WanLab() as lab,
        WanSwarm(lab, tiny, ["0-1", "2-3", "2-3"], serve_options=options, launch=fork_server.launch) as swarm,
    ):
        yield swarm


@pytest.fixture(scope="module")
def model(wan_swarm: WanSwarm) -> Iterator[SwarmModel]:
    """A client in a machine of its own, everything of it in float32 too."""
    with (
        wan_swarm.lab.inside(CLIENT),
        SwarmModel.connect(
            model=wan_swarm.model,
            initial_peers=wan_swarm.initial_peers,
            wire_codec="none",
            quantize="none",
            dtype="float32",
            threads=1,
            prefix_cache=False,
            wait=30,
        ) as connected,
    ):
        yield connected


@pytest.fixture(scope="module")
def undisturbed(wan_swarm: WanSwarm, model: SwarmModel) -> Generation:
    """The answer over links without delay; from then on they have 50 ms and 100 Mbit/s."""
    answer = model.generate_detailed(PROMPT, **OPTIONS)
    wan_swarm.lab.set_all(rtt_s=2 * WAY_S, rate=100e6)
    return answer


@pytest.mark.swarm
def test_links_of_50_ms_change_no_token(
    wan_swarm: WanSwarm, model: SwarmModel, undisturbed: Generation
) -> None:
    before = wan_swarm.lab.traffic(CLIENT, "hop0").bytes
    answer = model.generate_detailed(PROMPT, **OPTIONS)
    assert answer.token_ids == undisturbed.token_ids
    assert answer.repairs == 0
    steps = len(answer.token_ids) - 1
    assert answer.timings.decode_s / steps > 3 * WAY_S, "to one hop, to the other, and back"
    assert wan_swarm.lab.traffic(CLIENT, "hop0").bytes > before + 4 * HIDDEN * steps


@pytest.mark.swarm
def test_a_client_cut_off_for_3_s_goes_on_where_it_was(
    wan_swarm: WanSwarm, model: SwarmModel, undisturbed: Generation
) -> None:
    lab = wan_swarm.lab
    cut = lab.traffic(CLIENT, "hop0").cut
    stream = model.stream(PROMPT, **OPTIONS)
    text = next(stream)
    with following(lab, parse_schedule(f"0s cut {CLIENT}; 3s heal")):
        text += "".join(stream)
    assert text == undisturbed.text
    assert stream.result.token_ids == undisturbed.token_ids
    assert stream.result.timings.decode_s > 3.0
    assert lab.traffic(CLIENT, "hop0").cut > cut


@pytest.mark.swarm
def test_a_hop_that_is_partitioned_away_is_replaced(
    wan_swarm: WanSwarm, model: SwarmModel, undisturbed: Generation
) -> None:
    lab = wan_swarm.lab
    stream = model.stream(PROMPT, **OPTIONS)
    text = next(stream)
    assert stream.route is not None
    lost = stream.route.hops[1].peer_id
    lab.partition(next(name for name, peer_id in wan_swarm.peer_ids.items() if peer_id == lost))
    try:
        text += "".join(stream)
    finally:
        lab.heal()
    assert text == undisturbed.text
    assert stream.result.token_ids == undisturbed.token_ids
    assert lost in {peer for repair in stream.result.repaired for peer in repair.lost}
    assert lost not in {hop.peer_id for hop in stream.result.hops}
