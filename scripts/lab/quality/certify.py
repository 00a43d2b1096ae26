"""Makes a model's certificate: what each wire codec costs it at every boundary and in the whole, and the
scales of its channels. See scripts/certify --help."""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..command_line import count, names_of, script_parser
from .texts import MOBY_DICK, TYPINGS, fail, fetch_moby_dick, fetch_typings, read_text, show_progress

if TYPE_CHECKING:
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
goes on where it was.

The texts are Moby Dick (npm package {MOBY_DICK}) and code
(npm package {TYPINGS}), or yours; half of the windows begin with the model's first
special token, half without.

examples:
  scripts/certify MODEL                        8,192 tokens: 10 to 30 minutes for small models
  scripts/certify MODEL --text A --text B      your own texts
"""


def main() -> int:
    options = parse_arguments()
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
        (folder / f"{certificate.digest}.part.npz").unlink(missing_ok=True)
    except SwarmError as error:
        fail(error.message, error.hint, code=error.exit_code)
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

    def observe(self, rows: np.ndarray, codecs: dict[str, Codec]) -> None:
        from swarm_node.swarm.fidelity.row_error import exact_errors

        magnitudes = np.abs(rows)
        self.largest = max(self.largest, float(magnitudes.max()))
        self.massive += int((magnitudes.max(axis=1) > MASSIVE * np.median(magnitudes)).sum())
        for kind, codec in codecs.items():
            coded = round_trip(codec, rows)
            errors = np.full(len(rows), np.nan) if coded is None else exact_errors(rows, coded, self.weights)
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
    """What was measured so far, in a file. ``task``: what is measured; of another one nothing is used."""

    def __init__(self, path: Path, task: str) -> None:
        self._path, self._task = path, task

    def save(self, certifier: _Certifier, done: int) -> None:
        boundaries, scratch = certifier.boundaries, self._path.with_suffix(".new")
        with scratch.open("wb") as file:
            np.savez(
                file,
                task=np.array(self._task),
                done=np.array(done),
                trials=np.array([trial.sums for trial in certifier.trials]),
                largest=np.array([each.largest for each in boundaries]),
                massive=np.array([each.massive for each in boundaries]),
                errors=np.array(
                    [[np.concatenate(each.errors[kind]) for each in boundaries] for kind in certifier.kinds]
                ),
            )
        scratch.replace(self._path)

    def restore(self, certifier: _Certifier) -> int:
        """Windows that are done."""
        if not self._path.is_file():
            return 0
        with np.load(self._path, allow_pickle=False) as known:
            if str(known["task"]) != self._task:
                return 0
            for trial, sums in zip(certifier.trials, known["trials"], strict=True):
                trial.sums = Sums(*map(float, sums))
            for number, each in enumerate(certifier.boundaries):
                each.largest, each.massive = float(known["largest"][number]), int(known["massive"][number])
                errors = known["errors"][:, number]
                each.errors = {kind: [row] for kind, row in zip(certifier.kinds, errors, strict=True)}
            return int(known["done"])


class _Certifier:
    def __init__(self, checkpoint: Checkpoint, model: LocalModel, kinds: Sequence[str]) -> None:
        from swarm_node.shards.certificates.reading import reading_weights

        self.checkpoint, self.model, self.kinds = checkpoint, model, kinds
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
        state = Progress(folder / f"{self.checkpoint.ref.digest}.part.npz", repr((used, window, self.kinds)))
        done = state.restore(self)
        for number, ids in enumerate(measured[done:], done):
            self._measure(ids, codecs, f"window {number + 1} of {len(measured)}")
            state.save(self, number + 1)
        results = {}
        for kind in self.kinds:
            trials = [trial for trial in self.trials if trial.kind == kind]
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
        each = -(-tokens // (2 * len(texts) * window))  # windows of one text, with the first token or without
        measured: list[list[int]] = []
        calibration: list[list[int]] = []
        used: list[tuple[str, int, bool]] = []
        for text, name in texts:
            pieces = windows(tokenizer, text, 2 * each + CALIBRATION_WINDOWS, window, [])
            for with_first, some in ((True, pieces[:each]), (False, pieces[each : 2 * each])):
                begin = front if with_first else []
                measured += [[*begin, *ids][:window] for ids in some]
                used.append((name, len(some) * window, with_first and bool(front)))
            calibration += [
                [*(front if i % 2 else []), *ids][:window] for i, ids in enumerate(pieces[2 * each :])
            ]
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

    def _measure(self, ids: list[int], codecs: list[dict[str, Codec]], label: str) -> None:
        import torch

        from swarm_node.swarm.errors import LocalProtocolError

        with chosen_experts() as chosen:
            hidden = self.model.all_hidden(ids)
        for boundary, rows, known in zip(self.boundaries, hidden, codecs, strict=True):
            boundary.observe(rows, known)
        expected = torch.from_numpy(self.model.client.logits(hidden[-1][::PREDICTED])).log_softmax(dim=-1)
        probabilities, best = expected.exp(), expected.argmax(dim=-1)
        for trial in self.trials:
            show_progress(f"{label}: {trial.kind}, {trial.layout.replace('_', ' ')}")
            edges = [(at, codecs[at][trial.kind]) for at in trial.edges]
            try:
                with chosen_experts() as now:
                    rows = self.model.through_edges(hidden[edges[0][0]], edges)
            except LocalProtocolError:
                trial.add(Sums(overflows=len(ids)))
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
    tokens = sum(text.tokens for text in certificate.texts)
    print(f"{certificate.name} ({certificate.family}, {certificate.n_blocks} blocks), {tokens} tokens.\n")
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
