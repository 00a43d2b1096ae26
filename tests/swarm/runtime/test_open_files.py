"""How many connections there may be where descriptors are few."""

from __future__ import annotations

import errno
import resource

import pytest

from swarm_node.swarm.runtime.open_files import LEAST, RESERVED, allowed_connections, none_left


@pytest.mark.parametrize(
    ("soft", "hard", "wished", "share", "allowed"),
    [
        (1024, 1_000_000, 4096, 1.0, 4096),  # the soft limit is raised
        (1024, resource.RLIM_INFINITY, 512, 0.25, 512),
        (1024, 1024, 512, 0.25, (1024 - RESERVED) // 4),
        (256, 256, 512, 0.5, 64),  # half is kept
        (24, 24, 512, 0.5, LEAST),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 512, 0.5, 512),
    ],
)
def test_connections_are_allowed_as_descriptors_are(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wished: int, share: float, allowed: int
) -> None:
    limit = (soft, hard)

    def set_limit(_: int, to: tuple[int, int]) -> None:
        nonlocal limit
        limit = to

    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert allowed_connections(wished, share) == allowed


def test_only_a_lack_of_descriptors_is_one() -> None:
    assert none_left(OSError(errno.EMFILE, ""))
    assert none_left(OSError(errno.ENFILE, ""))
    assert not none_left(OSError(errno.ECONNREFUSED, ""))
    assert not none_left(ValueError())
