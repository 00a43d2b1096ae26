"""``swarm-node gateway`` as a person starts it, over a real swarm with a real model, asked by ``openai``."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from anthropic import AsyncAnthropic

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.event_process import EventProcess
from scripts.lab.processes.fork_server import ForkServer
from tests.swarms.harness import ONE_THREAD, Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
MODEL = "SmolLM2-135M-Instruct.Q4_1"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def swarm(smollm2_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    """Two ways through the second half, so that one may die."""
    spans = ["0-14", "15-29", "15-29"]
    with LocalSwarm(smollm2_path, spans, serve_options=ONE_THREAD, launch=fork_server.launch) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def gateway(
    swarm: LocalSwarm, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EventProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("sk-of-the-tests\n")
    words = ["gateway", "--json", "--model", swarm.model, "--port", "0", "--threads", "1"]
    words += ["--initial-peers", swarm.initial_peers[0], "--api-key-file", str(keys), "--drain-seconds", "5"]
    process = EventProcess("gateway", ["-m", "swarm_node.node.cli", *words], launch=fork_server.launch)
    try:
        process.wait_for("listening")
        yield process
    finally:
        process.stop()


@pytest.fixture
async def client(gateway: EventProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    url = gateway.events[-1]["url"]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-of-the-tests", max_retries=0) as client:
        yield client


async def test_it_answers(client: openai.AsyncOpenAI) -> None:
    assert [model.id for model in (await client.models.list()).data] == [MODEL]
    answer = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    streamed = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in streamed]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    completion = await client.completions.create(model=MODEL, prompt="1 2 3 4 5", temperature=0, max_tokens=6)
    assert completion.usage.prompt_tokens == 9
    assert completion.choices[0].text.startswith(" 6")


async def test_structured_output(client: openai.AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    messages: list[Any] = [
        {"role": "user", "content": "Describe Paris as JSON: city, and whether it is large."}
    ]
    answer = await client.chat.completions.create(
        model=MODEL, messages=messages, response_format=form, temperature=0, max_tokens=60
    )
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == {"city", "large"}
    assert isinstance(found["large"], bool)


async def test_other_apis_say_the_same(gateway: EventProcess, client: openai.AsyncOpenAI) -> None:
    url, key = gateway.events[-1]["url"], "sk-of-the-tests"
    answer = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=20
    )
    text, prompt_tokens = answer.choices[0].message.content, answer.usage.prompt_tokens
    asked: Any = QUESTION[0]["content"]
    response = await client.responses.create(model=MODEL, input=asked, temperature=0, max_output_tokens=20)
    assert (response.output_text, response.usage.input_tokens) == (text, prompt_tokens)
    async with AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as anthropic:
        greedy = {"temperature": 0}
        async with anthropic.messages.stream(
            model=MODEL, max_tokens=20, messages=QUESTION, extra_body=greedy
        ) as stream:
            message = await stream.get_final_message()
    assert [block.text for block in message.content] == [text]
    async with ollama.AsyncClient(host=url, headers={"authorization": f"Bearer {key}"}) as client_of_ollama:
        (listed,) = (await client_of_ollama.list()).models
        assert (listed.model, listed.details.family) == (f"{MODEL}:latest", "llama")
        said = await client_of_ollama.chat(
            listed.model, QUESTION, options={"temperature": 0, "num_predict": 20}
        )
    assert (said.message.content, said.prompt_eval_count) == (text, prompt_tokens)


async def test_control_tokens_are_hidden_shown_and_stopped_at(client: openai.AsyncOpenAI) -> None:
    async def answer(**fields: Any) -> tuple[str, str]:
        whole = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=16, extra_body=fields
        )
        return whole.choices[0].message.content, whole.choices[0].finish_reason

    said, _ = await answer()
    end = {"ignore_eos": True}
    assert await answer(**end, stop="<|im_end|>") == (said, "stop")
    assert await answer(**end, stop_token_ids=[2]) == (said, "stop")  # the same, by its id
    shown, reason = await answer(**end, skip_special_tokens=False)
    assert (shown.startswith(f"{said}<|im_end|>"), reason) == (True, "length")


async def test_a_peer_that_dies_costs_no_token(swarm: LocalSwarm, client: openai.AsyncOpenAI) -> None:
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count from 1 to 100."}],
        "temperature": 0,
        "max_tokens": 60,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"ignore_eos": True},
    }
    raw = await client.chat.completions.with_raw_response.create(**request)
    route = raw.headers["x-swarm-route"]
    stream = raw.parse()
    chunks = [await anext(stream) for _ in range(5)]
    (victim,) = [node for node in swarm.nodes[1:] if node.events[0]["peer_id"] in route]
    victim.kill()
    chunks += [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 60
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


async def test_it_leaves_cleanly_and_lets_answers_end(
    gateway: EventProcess, client: openai.AsyncOpenAI
) -> None:
    """The last test: the gateway is gone after it."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=40, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(stream)
    gateway.signal(signal.SIGTERM)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    await asyncio.to_thread(gateway.wait_for, "stopped", 20)
    assert await asyncio.to_thread(gateway.process.wait, 20) == 0
    assert {"listening", "draining", "stopped"} <= {event["event"] for event in gateway.events}
    assert gateway.stderr == ""


def test_wrong_calls(cli: Cli, tmp_path: Path) -> None:
    for words, code, said in (
        (("--host", "192.0.2.1"), 4, "cannot listen"),
        (("--api-key-file", str(tmp_path / "none")), 2, "cannot be read"),
        (("--port", "70000"), 2, "--port"),
    ):
        peers = (
            "--initial-peers",
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGzBhUsH1VZWyNaVBhSYtMRtbH8QkkJQ6sGN8mnjDYgB3",
        )
        done = cli("gateway", "--model", "nothing.gguf", *peers, *words)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
