"""That parts of hivemind are imported without torch, and that all of it is there for who uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PARTS = """
import inspect
import sys

import swarm_node.swarm.transport.p2pd.transport
import swarm_node.dht.kademlia.bootstrap
import swarm_node.dht.kademlia.directory
import hivemind.hivemind_cli
import hivemind.utils

for module in list(sys.modules.values()):
    getattr(module, "__warningregistry__", None)
    inspect.unwrap(module)
heavy = {"torch", "scipy", "numpy", "pydantic", "hivemind.dht", "hivemind.averaging"} & set(sys.modules)
assert not heavy, heavy
"""

WHOLE = """
import hivemind
import hivemind.utils
from hivemind.p2p import PeerID

parts = hivemind, hivemind.utils, hivemind.p2p
from hivemind.utils import MSGPackSerializer
from hivemind import DHT
import hivemind.dht.node
import hivemind.averaging
import torch

assert hivemind.__version__
assert hivemind.dht.DHT is DHT and hivemind.utils.MSGPackSerializer is MSGPackSerializer
assert hivemind.p2p.PeerID is PeerID and hivemind.averaging.DecentralizedAverager
assert parts == (sys.modules["hivemind"], sys.modules["hivemind.utils"], sys.modules["hivemind.p2p"])
assert not hasattr(hivemind, "nothing") and not hasattr(hivemind.utils, "nothing")
make_lazy()
assert parts[:2] == (sys.modules["hivemind"], sys.modules["hivemind.utils"])
print("good")
"""

LAZY = "import sys\nfrom swarm_node.swarm.runtime.lazy_hivemind import make_lazy\nmake_lazy()\nmake_lazy()\n"

MISSING = """
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("no torch here")

sys.meta_path.insert(0, NoTorch())
import hivemind

for _ in range(2):
    try:
        hivemind.DHT
    except ImportError as error:
        assert "no torch here" in str(error)
    else:
        raise SystemExit("imported without torch")
print("good")
"""


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_we_use_of_it_imports_nothing_heavy() -> None:
    _run(PARTS)


@pytest.mark.slow
def test_all_of_it_is_there_for_others() -> None:
    assert _run(LAZY + WHOLE) == "good\n"


@pytest.mark.slow
def test_all_of_it_may_be_there_before() -> None:
    assert _run("import hivemind\n" + LAZY + WHOLE) == "good\n"


def test_without_torch_its_absence_is_told_each_time() -> None:
    assert _run(LAZY + MISSING) == "good\n"
