"""The gateway's figures as families for Prometheus. Names are those of OpenTelemetry's conventions for
generative AI, where it has one: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..metrics.exposition import Family, counter, gauge, histogram
from .answer_counts import AnswerTotals

if TYPE_CHECKING:
    from ...swarm.runtime.histogram import Distribution
    from .gateway import Gateway

PROVIDER = "swarm_node"
_KIND = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")


def families(gateway: Gateway) -> Iterator[Family]:
    totals = gateway.figures.totals()
    admission = gateway.admission

    def by_kind(of: Callable[[AnswerTotals], Distribution]) -> dict[tuple[str, ...], Distribution]:
        return {
            (operation, PROVIDER, model): of(answers)
            for (model, operation), answers in totals.answers.items()
        }

    yield histogram(
        "gen_ai_server_request_duration_seconds",
        "Seconds from a request to the end of its answer; error_type is empty where it did not fail.",
        {
            (operation, PROVIDER, model, error): seconds
            for (model, operation), answers in totals.answers.items()
            for error, seconds in answers.seconds.items()
        },
        (*_KIND, "error_type"),
    )
    yield histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "Seconds from a request to the first token of its answer.",
        by_kind(lambda answers: answers.first_token_s),
        _KIND,
    )
    yield histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "Seconds for each token after the first, as the mean of each answer.",
        by_kind(lambda answers: answers.token_s),
        _KIND,
    )
    yield histogram(
        "gen_ai_client_token_usage",
        "Tokens of each prompt (input) and of each answer (output).",
        {
            (*kind, direction): sizes
            for direction, by in (
                ("input", by_kind(lambda answers: answers.prompt)),
                ("output", by_kind(lambda answers: answers.answer)),
            )
            for kind, sizes in by.items()
        },
        (*_KIND, "gen_ai_token_type"),
    )
    yield counter(
        "swarm_gateway_cached_prompt_tokens",
        "Tokens of prompts that the peers held from before.",
        {(model, operation): answers.cached_tokens for (model, operation), answers in totals.answers.items()},
        ("model", "operation"),
    )
    yield counter(
        "swarm_gateway_drafted_tokens",
        "Tokens fed before they were chosen, of answers that began: right ones saved a trip each.",
        {
            (model, operation, outcome): count
            for (model, operation), answers in totals.answers.items()
            for outcome, count in (
                ("right", answers.accepted),
                ("wrong", answers.drafted - answers.accepted),
            )
        },
        ("model", "operation", "outcome"),
    )
    yield counter(
        "swarm_gateway_output_tokens",
        "Tokens of answers, of those that run too.",
        {(model,): tokens for model, tokens in totals.tokens.items()},
        ("model",),
    )
    yield counter(
        "swarm_gateway_requests",
        "HTTP requests by path (empty: no path of the gateway) and status (0: the client left before).",
        {(path, str(status)): count for (path, status), count in totals.requests.items()},
        ("path", "status"),
    )
    yield counter(
        "swarm_gateway_failures",
        "Requests that were told of an error, in a stream too, by its code.",
        {(code,): count for code, count in totals.failures.items()},
        ("code",),
    )
    yield counter(
        "swarm_gateway_repairs",
        "Repairs of routes while an answer was made, by what was done and what had happened.",
        {(model, kind, reason): count for (model, kind, reason), count in totals.repairs.items()},
        ("model", "kind", "cause"),
    )
    yield gauge("swarm_gateway_requests_open", "Requests that are answered or wait.", admission.requests)
    yield gauge("swarm_gateway_generations_running", "Answers that are being made.", admission.running)
    yield gauge("swarm_gateway_generations_queued", "Answers that wait for their turn.", admission.waiting)
    yield gauge("swarm_gateway_draining", "1 while no new requests are taken.", gateway.draining)
