"""Fixtures every test may use."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError
from tests import ROOT

# The same examples every time, so that a run tells of the change and not of chance; to look for new ones:
# HYPOTHESIS_PROFILE=explore scripts/test
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


# Whoever starts the tests in the background or under nohup ignores these, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Modules and tests by the thousand are loaded from here on, and none of that is garbage.
gc.disable()


def pytest_collection_finish() -> None:
    """What is imported by now stays, and a garbage collection need not walk it each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


class _Unnoticed(logging.Handler):
    """What asyncio says of tasks and callbacks whose failures nobody took."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "was destroyed but it is pending" not in record.getMessage():  # of fakes that nobody closes
            self.said.append(self.format(record))


@pytest.fixture(autouse=True)
def no_failure_goes_unnoticed() -> Iterator[None]:
    handler = _Unnoticed()
    logging.getLogger("asyncio").addHandler(handler)
    yield
    logging.getLogger("asyncio").removeHandler(handler)
    assert not handler.said, "\n".join(handler.said)


@pytest.fixture(autouse=True)
def known_models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what this machine knows of models' names: not the one of whoever runs the tests."""
    home = tmp_path_factory.getbasetemp() / "homes" / secrets.token_hex(8)
    monkeypatch.setattr("swarm_node.shards.checkpoint.known_models.state_folder", lambda: home)
    return home / "known_models"


@pytest.fixture(scope="session", autouse=True)
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of files is no state of whoever runs the tests; the large model is hashed once."""
    if "SWARM_NODE_HOME" in os.environ:
        yield
        return
    os.environ["SWARM_NODE_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    del os.environ["SWARM_NODE_HOME"]


MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real model, from $SWARM_NODE_TEST_MODEL or where ``scripts/test`` puts it."""
    path = Path(os.environ.get("SWARM_NODE_TEST_MODEL") or ROOT / ".models" / MODEL_FILE)
    if not path.is_file():
        pytest.fail(f"{path} is missing; scripts/test installs it")
    return path


@cache
def why_not_native() -> str:
    """Why this machine has no native kernels; empty if it has them."""
    from swarm_node.shards.kernels.library import library

    try:
        library()
    except NativeUnavailableError as error:
        return str(error)
    return ""


def _skip_without_kernels() -> Generator[None, None, None]:
    """A test that asks for native kernels cannot run where there is no compiler; elsewhere it must."""
    try:
        return (yield)
    except (NativeUnavailableError, UsageError) as error:
        if (reason := why_not_native()) and reason in str(error):
            pytest.skip(f"needs the native kernels: {reason}")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    return (yield from _skip_without_kernels())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    return (yield from _skip_without_kernels())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.one_swarm import OneSwarm  # needs pytest-xdist, which is not there for every run

    return OneSwarm(config, log)
