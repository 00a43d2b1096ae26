"""What the gateway counts, shows of running answers, and logs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_node.client.gateway import figures as figures_module
from swarm_node.client.gateway.figures import CLIENT_GONE, Figures, code_of
from swarm_node.client.hops.trace import Repair
from swarm_node.client.http.errors import ApiError
from swarm_node.swarm.errors import BusyError, NetworkError
from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import ScriptedHead, until


async def test_requests_are_counted_by_path_and_status(serve: Serve) -> None:
    served = await serve()
    await served.chat(max_tokens=4)
    await served.chat(max_tokens=0)
    await served.http.get("/v1/models/toy")
    await served.http.get("/nothing")
    await served.http.get("/v1/chat/completions")
    await until(lambda: sum(served.gateway.figures.totals().requests.values()) == 5)
    totals = served.gateway.figures.totals()
    assert totals.requests == {
        ("/v1/chat/completions", 200): 1,
        ("/v1/chat/completions", 400): 1,
        ("/v1/chat/completions", 405): 1,
        ("/v1/models/{name:path}", 200): 1,
        ("", 404): 1,
    }
    assert totals.failures == {"invalid_request_error": 1, "method_not_allowed": 1, "not_found": 1}


async def test_answers_are_counted_by_model_and_operation(serve: Serve) -> None:
    served = await serve()
    await served.chat(max_tokens=5, ignore_eos=True)
    await served.chat(max_tokens=3, stream=True, ignore_eos=True)
    await served.complete("abc", max_tokens=2, n=2, ignore_eos=True)
    await until(lambda: not served.gateway.figures.answers())
    totals = served.gateway.figures.totals()
    assert totals.answers.keys() == {("toy", "chat"), ("toy", "text_completion")}
    chat, text = totals.answers["toy", "chat"], totals.answers["toy", "text_completion"]
    assert (chat.answer.count, chat.answer.total) == (2, 8)
    assert chat.prompt.total == 2 * len(served.prompt_of({"role": "user", "content": "hi"}))
    assert chat.first_token_s.count == chat.token_s.count == 2
    assert chat.seconds[""].total > chat.first_token_s.total > 0
    assert (text.answer.count, text.answer.total, text.prompt.count) == (2, 4, 1)  # a prompt counts once
    counters = served.gateway.figures.counters()
    assert (counters.answers, counters.failed, counters.tokens) == (3, 0, 12)
    assert counters.first_token_s.count == 3


async def test_an_answer_that_runs_is_shown_without_what_it_says(serve: Serve) -> None:
    served = await serve(latency=0.001)
    figures = served.gateway.figures
    asking = asyncio.create_task(served.chat("a secret", max_tokens=100, stream=True, ignore_eos=True))
    await until(lambda: any(answer.tokens > 3 for answer in figures.answers()))
    (answer,) = figures.answers()
    assert (answer.model, answer.waiting, answer.repairs) == ("toy", "", 0)
    assert [str(hop.span) for hop in answer.hops] == ["0-2", "3-5"]
    assert answer.age_s > 0
    assert "secret" not in repr(answer)
    await asking
    assert not figures.answers()


async def test_an_answer_that_has_no_turn_yet_says_so(serve: Serve) -> None:
    served = await serve(latency=0.001, limits={"max_running": 1})
    asking = [asyncio.create_task(served.chat(max_tokens=50, ignore_eos=True)) for _ in range(2)]
    figures = served.gateway.figures
    await until(lambda: len(figures.answers()) == 2 and any(answer.tokens for answer in figures.answers()))
    assert sorted(answer.waiting for answer in figures.answers()) == ["", "for its turn"]
    await asyncio.gather(*asking)


async def test_the_speed_is_of_the_time_since_the_last_look(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(latency=0.001)
    figures = served.gateway.figures
    asking = asyncio.create_task(served.chat(max_tokens=100, ignore_eos=True))
    await until(lambda: any(answer.tokens for answer in figures.answers()))
    (running,) = figures._running.values()
    first_at = running.answering.first_at
    assert first_at is not None
    running.since, running.rate = first_at, None  # as if nobody had looked, however slow this machine is
    early = first_at + figures_module.LOOK_S / 2
    assert running.tokens_per_s(early) == (running.answering.tokens - 1) / (early - first_at)
    tokens, before, seen = running.answering.tokens, running.since, running.seen
    assert running.tokens_per_s(before + 10) == (tokens - seen) / 10
    assert (running.since, running.seen) == (before + 10, tokens)
    await asking


async def test_repairs_are_seen_while_the_answer_goes_on(serve: Serve) -> None:
    """On a busy machine the patience of tests may see more than one."""
    served = await serve(a="0-2", b="3-5", c="3-5")
    for name in "bc":
        served.swarm.nodes[name].behaviour.step_delay_s = 0.01
    figures = served.gateway.figures
    asking = asyncio.create_task(served.chat(max_tokens=120, ignore_eos=True))
    await until(lambda: any(answer.tokens > 3 for answer in figures.answers()))
    lost = next(name for name in "bc" if served.swarm.nodes[name].open_sessions)
    served.swarm.network.kill(lost)
    await until(lambda: any(repair.lost == (lost,) for repair in figures.repairs()))
    (answer,) = figures.answers()
    repair = next(repair for repair in figures.repairs() if repair.lost == (lost,))
    assert (repair.answer, repair.model, repair.kind) == (answer.id, "toy", "replay")
    assert answer.repairs == len(figures.repairs())
    await asking
    assert figures.totals().repairs["toy", "replay", "stream_closed"] >= 1
    assert figures.counters().repairs == len(figures.repairs())  # each counts once, however often one looks


class _RepairedStream:
    so_far = waiting = None
    repaired = (
        Repair("replay", ("a",), "it was killed", 0.1),
        Repair("replay", ("b",), "it was killed", 0.1),
    )


def test_repairs_that_are_seen_at_once_are_told_apart() -> None:
    figures = Figures(wall=lambda: 5.0)
    answering: Any = SimpleNamespace(streams=[_RepairedStream()], tokens=0, first_at=None, queued_s=0.0)
    with figures.answer(answering, "toy", "chat", 1, 0.0, {}):
        pass
    assert len({repair.id for repair in figures.repairs()}) == 2


async def test_what_a_client_does_not_wait_for_is_no_failure(serve: Serve) -> None:
    served = await serve(latency=0.001)
    figures = served.gateway.figures
    asking = asyncio.create_task(served.chat(max_tokens=200, stream=True, ignore_eos=True))
    await until(lambda: any(answer.tokens for answer in figures.answers()))
    asking.cancel()
    await until(lambda: not figures.answers())
    (chat,) = figures.totals().answers.values()
    assert chat.seconds.keys() == {CLIENT_GONE}
    assert chat.answer.total > 0  # what was made until then
    assert (figures.counters().answers, figures.counters().failed) == (1, 0)


async def test_failures_have_their_codes(serve: Serve) -> None:
    served = await serve(a="0-2")
    reply = await served.chat()
    assert reply.status_code == 503
    figures = served.gateway.figures
    assert figures.totals().failures == {"no_route": 1}
    assert figures.totals().answers["toy", "chat"].seconds.keys() == {"no_route"}
    assert figures.counters().failed == 1


def test_every_error_has_a_code() -> None:
    assert code_of(ApiError(400, "text")) == "invalid_request_error"
    assert code_of(BusyError("text", retry_after=1)) == "swarm_busy"
    assert code_of(NetworkError("text")) == "network"
    assert code_of(ZeroDivisionError()) == "internal_error"


async def _logged(served: Served, caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    def lines() -> list[str]:
        return [line for line in caplog.messages if line.startswith("event=request ")]

    await until(lambda: len(lines()) == count)
    return lines()


async def test_a_request_is_a_line_of_the_log_without_its_texts(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "swarm_node.client")
    served = await serve(keys=["a-key-of-mine"])
    headers = {"Authorization": "Bearer a-key-of-mine"}
    body = {
        "model": "toy",
        "messages": [{"role": "user", "content": "a secret"}],
        "max_tokens": 3,
        "ignore_eos": True,
    }
    await served.http.post("/v1/chat/completions", json=body, headers=headers)
    await served.http.post("/v1/chat/completions", json={**body, "max_tokens": 0}, headers=headers)
    answered, refused = await _logged(served, caplog, 2)
    words = dict(word.split("=", 1) for word in answered.split())
    assert list(words) == [
        *("event", "method", "path", "status", "seconds", "caller", "model"),
        *("first_token_s", "prompt_tokens", "tokens", "queued_s", "repairs", "finish"),
    ]
    assert (words["status"], words["model"], words["tokens"]) == ("200", "toy", "3")
    assert (words["repairs"], words["finish"]) == ("0", "length")
    assert words["caller"].startswith("key-")
    assert len(words["caller"]) == len("key-") + 8
    assert "status=400 " in refused
    assert "error=invalid_request_error" in refused
    assert not any(text in caplog.text for text in ("secret", "a-key-of-mine"))


@pytest.mark.parametrize("target", ["/%0aevent=request%20status=200", "/x%20status=200"])
async def test_no_request_forges_a_line(serve: Serve, caplog: pytest.LogCaptureFixture, target: str) -> None:
    caplog.set_level("INFO", "swarm_node.client")
    served = await serve()
    await served.http.get(target)
    (line,) = await _logged(served, caplog, 1)
    assert [word for word in line.split() if word.startswith(("event=", "status="))] == [
        "event=request",
        "status=404",
    ]


async def test_an_answer_that_ends_badly_says_what_it_was(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "swarm_node.client")
    served = await serve(head=ScriptedHead([5, 6, 7]), latency=0.001)
    streaming = asyncio.create_task(served.chat(max_tokens=100, stream=True, ignore_eos=True))
    await until(lambda: any(answer.tokens for answer in served.gateway.figures.answers()))
    served.gateway.drop_all()
    await streaming
    (line,) = await _logged(served, caplog, 1)
    assert "status=200 " in line
    assert "error=shutting_down" in line
    assert line.endswith("finish=shutting_down")


async def test_what_watches_is_not_worth_a_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "swarm_node.client")
    served = await serve()
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        await served.http.get(path)
    (line,) = await _logged(served, caplog, 1)
    assert "path=/v1/models " in line
