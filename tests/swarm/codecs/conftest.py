from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm_node.swarm.codecs import native


@pytest.fixture(scope="module", params=["plain", "native"])
def both_paths(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of the module sees both ways of the packed codecs."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(native, "_codec", None)
        elif not native.warm_up():
            pytest.skip("no C compiler here")
        yield
