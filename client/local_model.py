"""What this machine holds of the model: tokenizer, embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import TYPE_CHECKING, TypeVar

from ..shards.pieces.file_hashes import hashing_watched
from ..swarm.boundaries import Boundaries
from ..swarm.codecs.names import DEFAULT_KIND, UNMEASURED_KIND, UNPROVEN_KINDS
from ..swarm.codecs.scales import ScaleTable
from ..swarm.fidelity.row_reader import RowReader
from ..swarm.runtime.heap import trim_heap
from ..swarm.types import ModelRef
from .drafting.draft_model import load_draft_model
from .drafting.next_guesses import NEXT_BYTES, load_next_model
from .drafting.source import Guesser
from .hops.row_watch import usual_embedding_rms
from .model_facts import UNKNOWN, ModelFacts

if TYPE_CHECKING:
    from ..shards.models.client_part import ClientModel
    from ..shards.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
NO_DRAFT_MODEL = "off"
"""In the place of a draft model's path or name: guesses come from the text alone."""
OnProgress = Callable[[str], None]
"""Called with one short line for people: what is being loaded, or waited for."""


async def hashing_told(opening: Awaitable[T], on_progress: OnProgress | None) -> T:
    """What comes of ``opening``. People are told while it hashes files; that ends when this is cancelled."""
    with hashing_watched(progress_lines(on_progress)):
        return await opening


def progress_lines(on_progress: OnProgress | None, doing: str = "") -> Callable[[int, int, str], None] | None:
    """What tells ``on_progress`` how much is done, in percent; without it where ``total`` is 0."""
    if on_progress is None:
        return None
    return lambda done, total, label: on_progress(
        f"{doing}{label}" + (f" ({done * 100 // total} %)" if total else "")
    )


@dataclass(frozen=True, slots=True)
class LocalModel:
    """``boundaries``: what passes between the model's blocks. ``sideband``: that has values of each token for
    each of them beside the residual. ``context``: the longest sequence in tokens. ``draft``: guesses what the
    model will say. ``close`` gives files back, if there are any; what guesses ends its step before.
    ``embedding_rms``: root mean square of a usual embedding, 0 where it is not known. ``keeps_states``: see
    ``SessionSettings``. ``wire_codec``: the kind of codec in which its activations travel, unless a person
    asks for another. ``scales``: for the rows at each boundary, as far as they are known. ``failed``: kinds
    of codecs that lose too much by the model's certificate, or may without one. ``reader``: judges the rows
    that come from the last block. ``facts``: for people. ``answered``: to be called, in a thread, after the
    swarm has answered with it."""

    ref: ModelRef
    boundaries: Boundaries
    vocab_size: int
    context: int
    head: ClientModel
    tokenizer: Tokenizer
    close: Callable[[], None] = lambda: None
    answered: Callable[[], None] | None = None
    draft: Guesser | None = None
    embedding_rms: float = 0.0
    keeps_states: bool = False
    wire_codec: str = DEFAULT_KIND
    sideband: bool = False
    scales: Mapping[int, ScaleTable] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    reader: RowReader | None = None
    facts: ModelFacts = UNKNOWN

    @property
    def residual_width(self) -> int:
        """Values of a row after the last block."""
        return self.boundaries.residual_width


def load_local_model(
    path_or_name: str | PathLike[str],
    *,
    device: str = "cpu",
    dtype: str = "auto",
    quantize: str = "auto",
    threads: int = 1,
    on_progress: OnProgress | None = None,
    draft: str | PathLike[str] | None = None,
) -> LocalModel:
    """Read a checkpoint's client part. Blocks for as long as that takes: run it in a thread.

    ``threads`` compute the head, where our own kernels do. ``draft``: a small model to read as a whole, or
    "off"; None: the block that the model itself may have for guesses.

    Raises UsageError, CheckpointError, UnsupportedModelError, and NetworkError for a hub model.
    """
    from ..shards.certificates.finding import find_certificate
    from ..shards.certificates.reading import row_reader
    from ..shards.checkpoint.opening import open_checkpoint
    from ..shards.kernels import table
    from ..shards.loading import load_client_model
    from ..shards.models.load_plan import LoadOptions

    if on_progress is not None and device == "cpu" and not table.is_ready():
        on_progress("Compiling kernels, once on this machine")
    options = LoadOptions(device=device, dtype=dtype, quantize=quantize)
    checkpoint = open_checkpoint(
        fspath(path_or_name),
        client=True,
        next_bytes=NEXT_BYTES if draft is None else 0,
        progress=progress_lines(on_progress),
    )
    try:
        config = checkpoint.config
        tokenizer = checkpoint.tokenizer()
        head = load_client_model(
            checkpoint, options, progress_lines(on_progress, "Loading "), threads=threads
        )
        certificate = find_certificate(checkpoint.ref, config.boundaries.widths)
        reader = row_reader(checkpoint, certificate, config.n_blocks)
        guesser: Guesser | None = None
        if draft is None:
            guesser = load_next_model(checkpoint, head, options, threads=threads, tell=on_progress)
        elif draft != NO_DRAFT_MODEL:
            on_part = progress_lines(on_progress, "Loading draft model, ")
            vocab = (tokenizer, config.vocab_size)
            guesser = load_draft_model(draft, *vocab, device=device, threads=threads, progress=on_part)
    except BaseException:
        checkpoint.close()
        raise

    usual_rms = usual_embedding_rms(head.embed, config.vocab_size)
    trim_heap()

    def close() -> None:
        if guesser is not None:
            guesser.close()
        tokenizer.close()
        checkpoint.close()

    return LocalModel(
        ref=checkpoint.ref,
        boundaries=config.boundaries,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        head=head,
        tokenizer=tokenizer,
        close=close,
        draft=guesser,
        embedding_rms=usual_rms,
        keeps_states=config.keeps_states,
        wire_codec=DEFAULT_KIND if config.sideband is None else UNMEASURED_KIND,
        sideband=config.sideband is not None,
        scales={} if certificate is None else certificate.scales(),
        failed=frozenset(UNPROVEN_KINDS) if certificate is None else certificate.failed,
        reader=reader,
        facts=ModelFacts.of(checkpoint),
    )
