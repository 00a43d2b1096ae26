"""``swarm-node generate``: one prompt in, the answer streamed out, the route it took shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ....client import AsyncSwarmModel, Generation, Guide, TextStream
from ....client.params import GenerateOptions, check_options
from ....client.parsing.pieces import Piece, Thoughts, Words
from ....client.reply import Reply
from ....swarm.errors import SwarmError, UsageError
from ..shared.arguments import client_options, decoded
from ..shared.output import (
    console,
    decision_line,
    drafts_line,
    events,
    plural,
    print_json,
    print_text,
    route_table,
    shown,
)
from ..shared.progress import progress_line, repair_line
from ..shared.thoughts import ThoughtLines
from .options import read_schema
from .trace import Trace, prefill_line, trace_of, waterfall

if TYPE_CHECKING:
    from ....shards.checkpoint.name_decision import NameDecision

MAX_PROMPT_BYTES = 16 * 1024 * 1024
"""More text than any model's context holds; bounds what standard input may pour in."""


async def run_generate(arguments: argparse.Namespace) -> None:
    if arguments.logprobs is not None and not arguments.json:
        raise UsageError("--logprobs shows nothing without --json", hint="Add --json.")
    prompt = read_prompt(arguments.prompt)
    schema = arguments.json_schema
    guide = Guide("json_schema", read_schema(schema)) if schema is not None else None
    options: GenerateOptions = {
        "raw": arguments.raw,
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "frequency_penalty": arguments.frequency_penalty,
        "presence_penalty": arguments.presence_penalty,
        "seed": arguments.seed,
        "stop": arguments.stop,
        "ignore_eos": arguments.ignore_eos,
        "logprobs": arguments.logprobs,
        "guide": guide,
        "speculate": arguments.speculate,
    }
    check_options(options)
    speak = not (arguments.json or arguments.quiet)
    status = progress_line("Opening the model ...", speak=speak)
    decisions: list[NameDecision] = []

    def on_decision(decision: NameDecision) -> None:
        decisions.append(decision)
        if speak or (decision.is_change and not arguments.json):
            console.print(decision_line(decision))

    def on_progress(text: str) -> None:
        status.update(text)

    status.start()
    try:
        async with await AsyncSwarmModel.connect(
            model=arguments.model,
            **client_options(arguments, on_progress=on_progress, on_decision=on_decision),
        ) as model:
            if speak and not (arguments.raw or model.tokenizer.has_chat_template):
                console.print("[yellow]No chat template: the text is sent as it is.[/]")
            status.update("Finding a route, and feeding it the prompt ...")
            stream = model.stream(prompt, **options)
            # A guide begins at once, so that there are no thoughts before what it makes.
            is_chat = model.tokenizer.has_chat_template and not arguments.raw and guide is None
            if arguments.json:
                reply = Reply(model.tokenizer, stream, is_chat=is_chat)
                result = await _finished(stream, reply)
                if decisions:
                    result["model_choice"] = decisions[0].as_dict()
                if arguments.trace:
                    result["trace"] = trace_of(result).as_dict()
                print_json(result)
                return
            reply = Reply(model.tokenizer, stream, is_chat=is_chat and sys.stdout.isatty())
            thoughts = ThoughtLines()
            begun = False
            async for piece in _pieces(stream, reply):
                status.stop()
                if not begun:
                    # A spinner would erase the answer's last line: a long repair is told in a line.
                    begun, status = True, repair_line(speak=speak)
                if isinstance(piece, Words):
                    thoughts.end()
                    print_text(piece.text)
                elif isinstance(piece, Thoughts) and speak:
                    thoughts.push(piece.text)
            status.stop()
            thoughts.end()
            print_text("\n")
            if speak:
                _print_route(stream.result, has_draft=_has_draft(arguments))
            if arguments.trace:
                print_trace(trace_of(stream.result.as_dict()))
    finally:
        status.stop()


async def _pieces(stream: TextStream, reply: Reply) -> AsyncIterator[Piece]:
    async for event in stream.events():
        for piece in reply.push(event):
            yield piece
    for piece in reply.flush():
        yield piece


async def _finished(stream: TextStream, reply: Reply) -> dict[str, object]:
    """The answer. Raises what ended it before; the error event has what there is of it then."""
    try:
        async with stream:
            async for event in stream.events():
                reply.push(event)
            reply.flush()
            return stream.result.as_dict() | reply.as_dict()
    except SwarmError:
        reply.flush()
        if stream.so_far is not None:
            events.with_error["answer"] = stream.so_far.as_dict() | reply.as_dict()
        raise


def read_prompt(text: str) -> str:
    """The prompt itself, or standard input for ``-``. Raises UsageError when there is none."""
    if text == "-":
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        if len(data) > MAX_PROMPT_BYTES:
            raise UsageError(f"the prompt on standard input is over {MAX_PROMPT_BYTES} bytes")
        text = decoded(data, "the prompt on standard input").removesuffix("\n")
    if not text:
        raise UsageError("the prompt is empty", hint="Pass some text, or - to read standard input.")
    return text


def _has_draft(arguments: argparse.Namespace) -> bool:
    return arguments.speculate != "off" and arguments.draft not in (None, "off")


def _print_route(result: Generation, *, has_draft: bool) -> None:
    console.print(route_table([hop.as_dict() for hop in result.hops]))
    timings = result.timings
    known = f" ({timings.cached_tokens} held by the peers already)" if timings.cached_tokens else ""
    console.print(
        f"{len(result.prompt_token_ids)} prompt tokens{known} in {timings.prefill_s:.2f} s, "
        f"{len(result.token_ids)} new tokens at {timings.tokens_per_s:.1f} tokens/s"
        + (f", {plural(result.repairs, 'repair')}" if result.repairs else "")
    )
    drafts, tokens = result.speculated, len(result.token_ids)
    if told := drafts_line(drafts, tokens, timings.decode_s, has_draft=has_draft):
        console.print(told, highlight=False)


def print_trace(trace: Trace) -> None:
    if trace.stages:
        console.print(waterfall(trace))
    console.print(prefill_line(trace), highlight=False)
    for line in filter(None, (trace.ways, trace.codecs, *trace.guesses)):
        console.print(shown(line), highlight=False)
    for sentence in trace.disagreements:
        console.print(f"Not as predicted: {shown(sentence)}", highlight=False)
    if trace.passed_over:
        console.print(shown(trace.passed_over), highlight=False)
