"""The interface between the engine and the code that computes a span: ``NativeSpan`` of our C kernels,
torch's ``TorchSpan``, MLX's ``MlxSpan``.

The engine's compute thread is the only caller once a span is loaded and its memory is made. Rows go in and
come out as float32 arrays, (tokens, ``ModelConfig.row_width``) and C-contiguous, as the wire codecs read and
write them; a backend whose type is narrower converts them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from ...swarm.types import Span
from ..layers.kv_pool import BatchSlice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..formats.config import ModelConfig


class KvMemory(Protocol):
    """What blocks keep of sessions: keys and values in ``n_slots`` slots, each one page of one block, and
    states in ``n_states`` slots, each that of one block at one position.

    What a slot holds before it was written is undefined, and no result may depend on it. The engine keeps
    which session holds which slot; a slot may be one block's now and another's later.
    """

    @property
    def n_slots(self) -> int: ...

    @property
    def n_states(self) -> int: ...

    @property
    def kv_dtype(self) -> str:
        """A name in ``kv_pool.KV_DTYPES``."""
        ...

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy each source slot to the target beside it. No slot may be both, no target named twice."""
        ...

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """The same for slots of states."""
        ...


Memory = TypeVar("Memory", bound=KvMemory)


class SpanBackend(Protocol[Memory]):
    """Blocks ``span`` of a model, ready to run. After loading, all calls are of one thread.

    ``limit``: the largest magnitude that activations may have: rows beyond it are refused before they get
    here. ``device``, ``weights`` and ``kernels`` are for people: where it computes, how the weights are held,
    what computes with them. ``mixes``: rows of prompts and decode steps are best computed together, as a GPU
    likes it.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def span(self) -> Span: ...

    @property
    def device(self) -> str: ...

    @property
    def limit(self) -> float: ...

    @property
    def weights(self) -> str: ...

    @property
    def kernels(self) -> str: ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take."""
        ...

    @property
    def mixes(self) -> bool: ...

    @property
    def any_thread(self) -> bool:
        """Whether ``forward`` may be called in one thread after another."""
        ...

    def kv_dtype(self, wanted: str, *, exact: bool) -> str:
        """What ``--kv-dtype wanted`` means here. ``exact``: the person asked for float32 activations.

        Raises UsageError for an unknown name.
        """
        ...

    def new_pool(self, n_slots: int, kv_dtype: str, n_states: int = 0) -> Memory:
        """Memory for this span's keys and values, and states. Raises MemoryError where there is not
        enough."""
        ...

    def forward(
        self, x: NDArray[np.float32], slices: Sequence[BatchSlice], pool: Memory, span: Span | None = None
    ) -> NDArray[np.float32]:
        """``x`` (T, ``row_width`` of the span's start), left as it is → (T, that of its end), through
        ``span`` (absolute numbers, between allowed cuts; None: all). Complete when it returns.

        ``slices`` in the order of their rows, which together are all of ``x``'s. Their keys and values, and
        states, go into ``pool``, as the slices' tables say; what a page holds beyond a slice's end counts
        for nothing. A call that raises has changed no keys and values before the first position of any
        slice, and no state of a page before its first.
        """
        ...

    def use_threads(self, threads: int) -> None:
        """Compute with at most ``threads`` from now on, of those that it was loaded with. A hint: it changes
        no bit of a result, and a backend that computes elsewhere ignores it."""
        ...
