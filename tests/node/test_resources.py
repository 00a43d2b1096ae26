from __future__ import annotations

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node import resources
from swarm_node.node.resources import KV_CEILING, KV_SHARE, MAX_CONTEXTS, default_kv_bytes
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.runtime import cores

GIB = 1024**3


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    return tmp_path


def test_memory_is_what_machine_and_container_leave(cgroup):
    whole = resources.available_memory("cpu")
    assert 0 < whole <= psutil.virtual_memory().total
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1\n")
    assert resources.available_memory("cpu") > 5000
    (cgroup / "memory.max").write_text("6000\n")
    (cgroup / "memory.current").write_text("1000\n")
    assert resources.available_memory("cpu") == 5000
    (cgroup / "memory.current").write_text("7000\n")
    assert resources.available_memory("cpu") == 0


@given(available=st.integers(0, 2**45), context=st.integers(1, 10**13))
def test_default_kv_cache_stays_in_its_bounds(available, context):
    cache = default_kv_bytes(available, context)
    assert 0 <= cache <= min(MAX_CONTEXTS * context, available * KV_CEILING)
    if cache > context:
        assert cache <= available * KV_SHARE


def test_default_kv_cache_for_machines_one_knows():
    context = 2 * 30 * 3 * 64 * 4 * 8192  # SmolLM2-135M, float32: 46 KB a token
    assert default_kv_bytes(20 * GIB, context) == 20 * GIB // 4
    assert default_kv_bytes(GIB // 2, context) == context  # one context, more than the share
    assert default_kv_bytes(64 * 1024**2, context) == int(0.8 * 64 * 1024**2)
    assert default_kv_bytes(GIB, 0) == 0  # blocks that cache nothing
    with pytest.raises(UsageError):
        default_kv_bytes(GIB, -1)
