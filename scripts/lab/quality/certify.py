"""Makes a model's certificate: what each wire codec costs it at every boundary and in the whole, and the
scales of its channels. See scripts/certify --help."""

from __future__ import annotations

import argparse
import hashlib
import operator
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..command_line import count, end_by_exception, names_of, script_parser
from .texts import MOBY_DICK, TYPINGS, fail, fetch_moby_dick, fetch_typings, read_text, show_progress

if TYPE_CHECKING:
    import torch

    from swarm_node.shards.certificates.certificate import Certificate
    from swarm_node.shards.checkpoint.checkpoint import Checkpoint
    from swarm_node.swarm.codecs.codec import Codec
    from swarm_node.swarm.codecs.scales import ScaleTable

    from .measure import LocalModel

CODECS = ("f8", "int8s", "bf16", "int8", "fp16")
WINDOW = 512
CALIBRATION_WINDOWS = 2
"""Of each text, behind what is measured: the scales are made of these, so that they have not seen it."""
LEAST_BLOCKS = 4
PREDICTED = 4
"""Every so many tokens a prediction is compared: the head of a small model costs more than its blocks, and
neighbours tell the least."""
MASSIVE = 1000.0
"""A row with a value this many times the median is massive."""
OUTLIER = 20.0
"""A channel whose root mean square is this many times the channels' median is an outlier."""
DESCRIPTION = f"""\
Measures what each wire codec costs a model, and writes its certificate: a file named by the model's
digest that clients and nodes find in ~/.swarm-node/certificates (or $SWARM_NODE_HOME/certificates).
It holds the scales of codec int8s, and which codecs passed. Without one, a model starts with bf16.
Codecs that the file has already, measured on the same texts, are kept. A run that was cut short
goes on where it was, with all of its codecs or with some.

The texts are Moby Dick (npm package {MOBY_DICK}) and code
(npm package {TYPINGS}), or yours; half of the windows begin with the model's first
special token, half without.

examples:
  scripts/certify MODEL                        8,192 tokens: 10 to 30 minutes for small models
  scripts/certify MODEL --text A --text B      your own texts
"""


def main() -> int:
    options = parse_arguments()
    end_by_exception()
    texts = (
        [read_text(path) for path in options.text]
        if options.text
        else [(fetch_moby_dick(), f"Moby Dick, npm {MOBY_DICK}"), (fetch_typings(), f"npm {TYPINGS}")]
    )
    from swarm_node.shards.certificates.certificate import certificate_text, parse_certificate
    from swarm_node.shards.certificates.finding import certificates_folder
    from swarm_node.swarm.codecs import native
    from swarm_node.swarm.errors import SwarmError
    from swarm_node.swarm.runtime.state_files import replace_file

    native.warm_up()
    try:
        folder = options.folder or certificates_folder()
        folder.mkdir(parents=True, exist_ok=True)
        certificate = certify(
            *(options.model, texts),
            tokens=options.tokens,
            kinds=options.codecs,
            folder=folder,
            threads=options.threads,
        )
        path = folder / f"{certificate.digest}.json"
        if path.is_file():
            certificate = merged(parse_certificate(path.read_bytes(), str(path)), certificate)
        replace_file(path, certificate_text(certificate))
        Progress(folder, certificate.digest).forget(options.codecs)
    except SwarmError as error:
        fail(error.message, error.hint, code=error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        show_progress("")
        print("stopped: the same command goes on where this run was", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    finally:
        show_progress("")
    print_summary(certificate)
    print(f"\nWritten to {path}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("certify", DESCRIPTION)
    parser.add_argument("model", help="GGUF file, HuggingFace folder or hub name")
    parser.add_argument("--text", type=Path, action="append", help="text file, UTF-8; may be given again")
    parser.add_argument("--tokens", type=count, default=8192, help="tokens of all texts (%(default)s)")
    parser.add_argument(
        "--codecs", type=names_of(CODECS), default=list(CODECS), help=f"of {', '.join(CODECS)} (all)"
    )
    parser.add_argument("--threads", type=count, default=None, help="computing threads (all cores)")
    parser.add_argument("--folder", type=Path, help="where to write it (your own certificates)")
    return parser.parse_args()


@dataclass(slots=True)
class BoundarySums:
    """What is known of the rows that pass one boundary."""

    weights: np.ndarray  # (width,), of the norm that reads them
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (width,), ``channel_squares``
    rows: int = 0
    largest: float = 0.0
    massive: int = 0
    errors: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def calibrate(self, rows: np.ndarray) -> None:
        from swarm_node.swarm.fidelity.scale_learner import channel_squares

        squares = channel_squares(rows)
        self.squares = squares if not self.rows else self.squares + squares
        self.rows += len(rows)

    def observe(self, rows: np.ndarray) -> None:
        magnitudes = np.abs(rows)
        self.largest = max(self.largest, float(magnitudes.max()))
        self.massive += int((magnitudes.max(axis=1) > MASSIVE * np.median(magnitudes)).sum())

    def compare(self, rows: np.ndarray, kind: str, codec: Codec) -> None:
        from swarm_node.swarm.fidelity.row_error import exact_errors

        coded = round_trip(codec, rows)
        errors = (
            np.full(len(rows), np.nan)
            if coded is None
            else exact_errors(rows, coded, np.square(self.weights, dtype=np.float64))
        )
        self.errors.setdefault(kind, []).append(errors.astype(np.float32))

    @property
    def table(self) -> ScaleTable:
        from swarm_node.swarm.fidelity.scale_learner import scale_table

        return scale_table(self.squares / self.rows, self.weights)

    @property
    def outlier_channels(self) -> int:
        sizes = np.sqrt(self.squares)
        return int((sizes > OUTLIER * np.median(sizes)).sum())


class Sums(NamedTuple):
    """Over all ``predictions``: divergence, most likely tokens that stayed, chosen experts, those that
    stayed, and rows that the codec could not hold."""

    predictions: float = 0.0
    kl: float = 0.0
    same_tokens: float = 0.0
    experts: float = 0.0
    same_experts: float = 0.0
    overflows: float = 0.0


@dataclass(slots=True)
class Trial:
    """One codec on one set of edges."""

    kind: str
    layout: str
    edges: Sequence[int]
    sums: Sums = field(default_factory=Sums)

    def add(self, more: Sums) -> None:
        self.sums = Sums(*map(operator.add, self.sums, more))

    @property
    def divergence(self) -> tuple[float, float]:
        """(mean divergence, share of most likely tokens that stayed)."""
        return self.sums.kl / self.sums.predictions, self.sums.same_tokens / self.sums.predictions

    @property
    def same_experts(self) -> float | None:
        return self.sums.same_experts / self.sums.experts if self.sums.experts else None


def certify(
    model: str,
    texts: Sequence[tuple[str, str]],
    *,
    tokens: int,
    kinds: Sequence[str],
    folder: Path,
    threads: int | None = None,
    window: int = WINDOW,
) -> Certificate:
    """Raises SwarmError for a bad model and UsageError for a short text. ``texts``: each with its name.
    ``folder``: where a run that was cut short goes on."""
    import torch

    from swarm_node.shards.checkpoint.opening import open_checkpoint
    from swarm_node.swarm.errors import UsageError

    from .measure import REFERENCE, LocalModel

    if threads:
        torch.set_num_threads(threads)
    show_progress("loading")
    with open_checkpoint(model, client=True) as checkpoint, torch.inference_mode():
        config = checkpoint.config
        if len(config.cuts) != config.n_blocks + 1:
            raise UsageError(
                f"{checkpoint.ref.name} cannot be cut everywhere: such models are not measured yet"
            )
        if config.n_blocks < LEAST_BLOCKS:
            raise UsageError(f"a model of {config.n_blocks} blocks cannot be cut three times")
        local = LocalModel(checkpoint, REFERENCE)
        return _Certifier(checkpoint, local, kinds).certificate(texts, tokens, window, folder)


class Progress:
    """What was measured so far, in a file, codec by codec: a later run may ask for fewer or for others.
    ``task``: what is measured on; of another one nothing is used."""

    def __init__(self, folder: Path, digest: str, task: str = "") -> None:
        self._path, self._task = folder / f"{digest}.part.npz", task
        self._others: dict[str, np.ndarray] = {}

    def save(self, certifier: _Certifier) -> None:
        boundaries = certifier.boundaries
        arrays = {
            "task": np.array(self._task),
            "observed": np.array(certifier.observed),
            "largest": np.array([each.largest for each in boundaries]),
            "massive": np.array([each.massive for each in boundaries]),
        }
        for kind in (kind for kind, done in certifier.done.items() if done):
            arrays |= {
                f"{kind} done": np.array(certifier.done[kind]),
                f"{kind} sums": np.array([trial.sums for trial in certifier.trials_of(kind)]),
                f"{kind} errors": np.array([np.concatenate(each.errors[kind]) for each in boundaries]),
            }
        self._write(self._others | arrays)

    def restore(self, certifier: _Certifier) -> None:
        known = self._read()
        if not known or str(known["task"]) != self._task:
            return
        self._others = _without(known, certifier.kinds)
        certifier.observed = int(known["observed"])
        for number, each in enumerate(certifier.boundaries):
            each.largest, each.massive = float(known["largest"][number]), int(known["massive"][number])
        for kind in certifier.kinds:
            if f"{kind} done" not in known:
                continue
            certifier.done[kind] = int(known[f"{kind} done"])
            for trial, sums in zip(certifier.trials_of(kind), known[f"{kind} sums"], strict=True):
                trial.sums = Sums(*map(float, sums))
            for each, errors in zip(certifier.boundaries, known[f"{kind} errors"], strict=True):
                each.errors[kind] = [errors]

    def forget(self, kinds: Collection[str]) -> None:
        """These are in a certificate now."""
        left = _without(self._read(), kinds)
        if any(name.endswith(" done") for name in left):
            self._write(left)
        else:
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, np.ndarray]:
        if not self._path.is_file():
            return {}
        with np.load(self._path, allow_pickle=False) as known:
            return dict(known)

    def _write(self, arrays: dict[str, np.ndarray]) -> None:
        scratch = self._path.with_suffix(".new")
        with scratch.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        scratch.replace(self._path)


def _without(arrays: dict[str, np.ndarray], kinds: Collection[str]) -> dict[str, np.ndarray]:
    return {name: each for name, each in arrays.items() if name.split(" ")[0] not in kinds}


class TimeLeft:
    """What a run has done of its ``steps``. ``done``: before it began."""

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._first, self._began = steps, done, time.monotonic()

    def of(self, done: int) -> str:
        share = f"{100 * done / self._steps:.0f} %"
        if done == self._first:
            return share
        left = (time.monotonic() - self._began) / (done - self._first) * (self._steps - done)
        return f"{share}, {left / 60:.0f} min left" if left >= 60 else f"{share}, {left:.0f} s left"


@dataclass(frozen=True, slots=True)
class Reference:
    """A window as the model computes it without a cut: ``hidden`` rows at each boundary, ``chosen`` experts
    of each router, and ``predicted`` log-probabilities."""

    hidden: Sequence[np.ndarray]
    chosen: Sequence[np.ndarray]
    predicted: torch.Tensor


class _Certifier:
    def __init__(self, checkpoint: Checkpoint, model: LocalModel, kinds: Sequence[str]) -> None:
        from swarm_node.shards.certificates.reading import reading_weights

        self.checkpoint, self.model, self.kinds = checkpoint, model, kinds
        self.done = dict.fromkeys(kinds, 0)  # windows, by kind
        self.observed = 0  # windows, whatever the kind
        n = model.n_blocks
        self.boundaries = [BoundarySums(reading_weights(checkpoint, number)) for number in range(n + 1)]
        hops = [round(n * i / 3) for i in range(4)]
        # Through the client: it decodes what a hop sends and encodes it again for the next.
        layouts = {
            "three_cuts": [round(n * i / 4) for i in (1, 2, 3)],
            "six_edges": [hops[0], *(edge for edge in hops[1:-1] for _ in range(2)), hops[-1]],
            "every_block": list(range(n + 1)),
        }
        self.trials = [Trial(kind, name, edges) for kind in kinds for name, edges in layouts.items()]

    def trials_of(self, kind: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.kind == kind]

    def certificate(
        self, texts: Sequence[tuple[str, str]], tokens: int, window: int, folder: Path
    ) -> Certificate:
        from swarm_node.shards.certificates.certificate import (
            Boundary,
            Certificate,
            CodecResult,
            Divergence,
            RowError,
            TextUsed,
        )

        measured, calibration, used = self._windows(texts, tokens, window)
        for number, ids in enumerate(calibration):
            show_progress(f"scales: window {number + 1} of {len(calibration)}")
            for boundary, rows in zip(self.boundaries, self.model.all_hidden(ids), strict=True):
                boundary.calibrate(rows)
        codecs = self._codecs()
        read = hashlib.sha256("\0".join(text for text, _ in texts).encode()).hexdigest()
        state = Progress(folder, self.checkpoint.ref.digest, repr((used, window, read)))
        state.restore(self)
        time_left = TimeLeft(len(measured) * len(self.kinds), sum(self.done.values()))
        for number, ids in enumerate(measured):
            kinds = [kind for kind in self.kinds if self.done[kind] <= number]
            reference = self._reference(ids, observe=number >= self.observed) if kinds else None
            self.observed = max(self.observed, number + 1)
            for kind in kinds:
                assert reference is not None
                left = time_left.of(sum(self.done.values()))
                self._measure(reference, codecs, kind, f"window {number + 1} of {len(measured)} ({left})")
                self.done[kind] = number + 1
                state.save(self)
        results = {}
        for kind in self.kinds:
            trials = self.trials_of(kind)
            results[kind] = CodecResult(
                {trial.layout: Divergence(*trial.divergence) for trial in trials if not trial.sums.overflows},
                trials[0].same_experts,
            )
        boundaries = []
        for sums in self.boundaries:
            errors = {kind: np.concatenate(each) for kind, each in sums.errors.items()}
            errors = {kind: each for kind, each in errors.items() if not np.isnan(each).any()}
            boundaries.append(
                Boundary(
                    width=len(sums.weights),
                    largest=sums.largest,
                    massive_rows=sums.massive,
                    outlier_channels=sums.outlier_channels,
                    errors={
                        kind: RowError(float(each.mean()), float(np.quantile(each, 0.99)))
                        for kind, each in errors.items()
                    },
                    scales=sums.table,
                )
            )
        ref = self.checkpoint.ref
        return Certificate(
            digest=ref.digest,
            name=ref.name,
            family=self.checkpoint.config.family,
            made_by=version("swarm-node"),
            window=window,
            texts=tuple(TextUsed(*each) for each in used),
            boundaries=tuple(boundaries),
            codecs=results,
        )

    def _windows(
        self, texts: Sequence[tuple[str, str]], tokens: int, window: int
    ) -> tuple[list[list[int]], list[list[int]], list[tuple[str, int, bool]]]:
        """(measured, for the scales, (text, tokens, with the first token) of what is measured)."""
        from .measure import windows

        tokenizer, config = self.checkpoint.tokenizer(), self.checkpoint.config
        front = tokenizer.encode("", add_special=True)[:1]
        if not front and config.bos_token_id is not None:
            front = [config.bos_token_id]
        measured: list[list[int]] = []
        calibration: list[list[int]] = []
        used: list[tuple[str, int, bool]] = []
        lengths = [min(window, tokens - at) for at in range(0, tokens, window)]
        for place, (text, name) in enumerate(texts):
            # In turns: text after text, and each with the first token in every other round.
            mine = lengths[place :: len(texts)]
            halves = mine[place % 2 :: 2], mine[1 - place % 2 :: 2]
            pieces = windows(tokenizer, text, len(mine) + CALIBRATION_WINDOWS, window, [])
            at = 0
            for with_first, some in zip((True, False), halves, strict=True):
                begin = front if with_first else []
                measured += [[*begin, *ids][:n] for ids, n in zip(pieces[at:], some, strict=False)]
                at += len(some)
                if some:
                    used.append((name, sum(some), with_first and bool(front)))
            calibration += [[*(front if i % 2 else []), *ids][:window] for i, ids in enumerate(pieces[at:])]
        return measured, calibration, used

    def _codecs(self) -> list[dict[str, Codec]]:
        """For each boundary, by kind."""
        from swarm_node.swarm.codecs.int8s import Int8sCodec
        from swarm_node.swarm.codecs.kinds import STATELESS

        return [
            {
                kind: Int8sCodec.of(boundary.table) if kind == "int8s" else STATELESS[kind]
                for kind in self.kinds
            }
            for boundary in self.boundaries
        ]

    def _reference(self, ids: list[int], *, observe: bool) -> Reference:
        import torch

        with chosen_experts() as chosen:
            hidden = self.model.all_hidden(ids)
        if observe:
            for boundary, rows in zip(self.boundaries, hidden, strict=True):
                boundary.observe(rows)
        logits = self.model.client.logits(hidden[-1][::PREDICTED])
        return Reference(hidden, chosen, torch.from_numpy(logits).log_softmax(dim=-1))

    def _measure(self, reference: Reference, codecs: list[dict[str, Codec]], kind: str, label: str) -> None:
        import torch

        from swarm_node.swarm.errors import LocalProtocolError

        hidden, chosen, expected = reference.hidden, reference.chosen, reference.predicted
        for boundary, rows, known in zip(self.boundaries, hidden, codecs, strict=True):
            boundary.compare(rows, kind, known[kind])
        probabilities, best = expected.exp(), expected.argmax(dim=-1)
        for trial in self.trials_of(kind):
            show_progress(f"{label}: {kind}, {trial.layout.replace('_', ' ')}")
            edges = [(at, codecs[at][kind]) for at in trial.edges]
            try:
                with chosen_experts() as now:
                    rows = self.model.through_edges(hidden[edges[0][0]], edges)
            except LocalProtocolError:
                trial.add(Sums(overflows=len(hidden[0])))
                continue
            got = torch.from_numpy(self.model.client.logits(rows[::PREDICTED])).log_softmax(dim=-1)
            kl = float((probabilities * (expected - got)).sum(dim=-1).double().sum())
            same = int((got.argmax(dim=-1) == best).sum())
            pairs = list(zip(chosen[len(chosen) - len(now) :], now, strict=True))
            kept = sum(alike(before, after) for before, after in pairs)
            trial.add(Sums(len(best), kl, same, sum(before.size for before, _ in pairs), kept))


def alike(before: np.ndarray, after: np.ndarray) -> int:
    """How many of the experts (tokens, used) chosen ``before`` are chosen ``after``, too."""
    return int((before[:, :, None] == after[:, None, :]).sum())


def round_trip(codec: Codec, rows: np.ndarray) -> np.ndarray | None:
    """What a reader has of ``rows`` (tokens, width); None where the codec cannot hold them."""
    from swarm_node.swarm.errors import LocalProtocolError

    try:
        return codec.decode(codec.encode(rows), *rows.shape)
    except LocalProtocolError:
        return None


def merged(old: Certificate, new: Certificate) -> Certificate:
    """``new``, with the codecs of ``old`` that it has not, if both were measured on the same texts."""
    if (old.digest, old.window, old.texts) != (new.digest, new.window, new.texts):
        return new
    # Scales stay those that int8s was measured with.
    tables = old if "int8s" in old.codecs and "int8s" not in new.codecs else new
    boundaries = [
        replace(each, errors={**before.errors, **each.errors}, scales=table.scales)
        for before, each, table in zip(old.boundaries, new.boundaries, tables.boundaries, strict=True)
    ]
    return replace(new, boundaries=tuple(boundaries), codecs={**old.codecs, **new.codecs})


@contextmanager
def chosen_experts() -> Iterator[list[np.ndarray]]:
    """The experts (tokens, used) that each router chooses while this is open, block after block."""
    from swarm_node.shards.torch.experts import Router

    found: list[np.ndarray] = []
    choose = Router.__call__

    def noted(self: Router, x: Any, stream: Any) -> Any:
        chosen, weights = choose(self, x, stream)
        found.append(chosen.cpu().numpy())
        return chosen, weights

    Router.__call__ = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Router.__call__ = choose  # type: ignore[method-assign]


def print_summary(certificate: Certificate) -> None:
    """Markdown, so that it can go into the documentation as it is."""
    size = f"{certificate.n_blocks} blocks), {certificate.tokens} tokens"
    print(f"{certificate.name} ({certificate.family}, {size}.\n")
    print("| codec | three cuts | six edges | every block | error of rows, mean and p99 | verdict |")
    print("|---|---|---|---|---|---|")
    for kind, result in certificate.codecs.items():
        cells = [
            f"{each.kl:.1e} ({each.same_top_token:.1%})"
            if (each := result.divergence.get(name))
            else "too large"
            for name in ("three_cuts", "six_edges", "every_block")
        ]
        errors = [boundary.errors[kind] for boundary in certificate.boundaries if kind in boundary.errors]
        worst = f"{max(each.mean for each in errors):.2%}, {max(each.p99 for each in errors):.2%}"
        experts = "" if result.same_experts is None else f", {result.same_experts:.1%} of experts"
        print(
            f"| {kind} | {' | '.join(cells)} | {worst}{experts} | {certificate.problem(kind) or 'passes'} |"
        )
    largest = max(boundary.largest for boundary in certificate.boundaries)
    channels = max(boundary.outlier_channels for boundary in certificate.boundaries)
    print(f"\nLargest value {largest:.0f}; up to {channels} channels above {OUTLIER:.0f} times the median.")


if __name__ == "__main__":
    sys.exit(main())
