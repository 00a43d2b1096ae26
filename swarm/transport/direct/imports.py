"""py-libp2p, loaded when first used, and without a quarrel over protobuf with hivemind.

Both declare a protobuf file ``crypto.pb``, and one process-wide pool refuses the second. So py-libp2p's go
into a pool of their own, in whichever order the two are imported.
"""

from __future__ import annotations

import threading
from importlib.util import find_spec
from types import ModuleType

from ...errors import UsageError
from ...runtime.extras import install_extra

_loading = threading.Lock()
_noise: ModuleType | None = None


def lacks_p2pd() -> bool:
    """Whether this installation cannot run p2pd, as on Windows: then a pure-Python peer is all there is."""
    return find_spec("hivemind") is None


def load_noise() -> ModuleType:
    """The module ``libp2p.security.noise.transport``; takes over a second the first time.

    Raises UsageError that names the extra if py-libp2p is not installed.
    """
    global _noise
    with _loading:
        if _noise is None:
            _noise = _import_apart()
        return _noise


def _import_apart() -> ModuleType:
    from google.protobuf import descriptor_pool

    usual, own, here = descriptor_pool.Default, descriptor_pool.DescriptorPool(), threading.get_ident()
    # Other threads may be importing protobuf files of others meanwhile.
    descriptor_pool.Default = lambda: own if threading.get_ident() == here else usual()
    try:
        import libp2p.security.noise.transport as noise
    except ImportError as error:
        raise UsageError(
            f"a pure-Python peer needs py-libp2p, which cannot be imported: {error}",
            hint=f"In the checkout: {install_extra('libp2p')}",
        ) from error
    finally:
        descriptor_pool.Default = usual
    return noise
