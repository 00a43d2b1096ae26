"""Thoughts and calls in the form of each family, however the text is cut."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.parsing.dialect import dialect_of
from swarm_node.client.parsing.pieces import ToolCall
from tests.client.parsing.parsing_case import Heard, cut, heard, reader, spelled

SCHEMAS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}},
    },
    "time": None,
}


def call(name: str = "weather", **arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


@dataclass(frozen=True)
class Family:
    """``shown``: what its template shows of calls and thoughts; ``special``: its control tokens; ``prompt``:
    the end of its prompts."""

    shown: str
    special: tuple[str, ...] = ()
    prompt: str = ""


HERMES = Family("<think></think><tool_call>")
CODER = Family("<tool_call><function=", ("<tool_call>", "</tool_call>"))
GLM = Family("<think></think><tool_call><arg_key>", prompt="<|assistant|>\n<think>")
LLAMA = Family("{{ tools | tojson }}", ("<|python_tag|>",))
MISTRAL = Family("[TOOL_CALLS]", ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"))
MINIMAX = Family("<think></think><minimax:tool_call>", prompt="]~b]ai\n<think>\n")
DEEPSEEK = Family(
    "<think></think><｜tool▁calls▁begin｜>",
    (
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
        "<｜tool▁sep｜>",
    ),
)
KIMI = Family(
    "<think></think><|tool_calls_section_begin|>",
    (
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
        *("<|tool_call_end|>", "<|tool_call_argument_begin|>"),
    ),
)
GPT_OSS = Family(
    "<|channel|>",
    (*("<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|constrain|>"),),
    "<|start|>assistant",
)
GEMMA = Family(
    "<|channel>thought <|tool_call>call:",
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
)
SEED = Family("<seed:think></seed:think><seed:tool_call><function=")
GRANITE = Family("<|tool_call|>", ("<|tool_call|>",))
OLMO = Family("<function_calls>")
LLAMA_4 = Family("{{ tools | tojson }}", ("<|python_start|>", "<|python_end|>"))
GLM_4 = Family("<|observation|>", ("<|observation|>", "<|assistant|>"))
COMMAND = Family("<|START_ACTION|>", ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>"))

KOELN = '{"city": "Köln"}'
B, E = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
b, e, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"

CASES: dict[str, tuple[Family, str, Heard]] = {
    "hermes": (
        HERMES,
        f'<think>\nHm, rain?\n\n</think>\n\nI look.\n<tool_call>\n{{"name": "weather", '
        f'"arguments": {KOELN}}}\n</tool_call>',
        Heard("I look.\n", "Hm, rain?", [call(city="Köln")]),
    ),
    "thoughts that the prompt has opened": (
        Family("<think>", prompt="<|im_start|>assistant\n<think>\n"),
        "Let me see.\n</think>\n\nHello <think> there",
        Heard("Hello <think> there", "Let me see."),
    ),
    "thoughts that do not end": (HERMES, "<think>a </thi", Heard("", "a </thi")),
    "no thoughts": (HERMES, "<think></think>\n\nHello", Heard("Hello")),
    "coder": (
        CODER,
        "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\n"
        "Köln\nam </parameter> Rhein\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>",
        Heard("I look.\n", "", [call(city="Köln\nam </parameter> Rhein", days=3, exact=True)]),
    ),
    "coder without the outer tag": (
        CODER,
        "<function=time>\n</function>\n</tool_call>\n<tool_call>\n<function=time></function></tool_call>",
        Heard("", "", [call("time"), call("time")]),
    ),
    "glm": (
        GLM,
        "Rain?</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n"
        "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>\n<tool_call>time</tool_call>",
        Heard("", "Rain?", [call(city="Köln", days=3), call("time")]),
    ),
    "llama": (LLAMA, f'{{"name": "weather", "parameters": {KOELN}}}', Heard("", "", [call(city="Köln")])),
    "llama with its tag": (
        LLAMA,
        f'<|python_tag|>{{"name": "weather", "parameters": {KOELN}}}; {{"name": "time", "parameters": {{}}}}',
        Heard("", "", [call(city="Köln"), call("time")]),
    ),
    "mistral, a list": (
        MISTRAL,
        f'Yes.[TOOL_CALLS] [{{"name": "weather", "arguments": {KOELN}, "id": "abcdefghi"}}]',
        Heard("Yes.", "", [call(city="Köln")]),
    ),
    "mistral, names": (
        MISTRAL,
        f"[THINK]Rain?[/THINK]Yes.[TOOL_CALLS]weather[ARGS]{KOELN}[TOOL_CALLS]time[CALL_ID]123456789[ARGS]{{}}",
        Heard("Yes.", "Rain?", [call(city="Köln"), call("time")]),
    ),
    "minimax": (
        MINIMAX,
        'Rain?\n</think>\n\n<minimax:tool_call>\n<invoke name="weather">\n'
        '<parameter name="city">Köln</parameter>\n'
        '<parameter name="exact">false</parameter>\n</invoke>\n<invoke name="time">\n</invoke>\n'
        "</minimax:tool_call>",
        Heard("", "Rain?", [call(city="Köln", exact=False), call("time")]),
    ),
    "deepseek v3": (
        DEEPSEEK,
        f"I look.{B}{b}function{SEP}weather\n```json\n{KOELN}\n```{e}\n"
        f"{b}function{SEP}time\n```json\n{{}}\n```{e}{E}",
        Heard("I look.", "", [call(city="Köln"), call("time")]),
    ),
    "deepseek v3.1": (
        DEEPSEEK,
        f"{B}{b}weather{SEP}{KOELN}{e}{b}time{SEP}{{}}{e}{E}",
        Heard("", "", [call(city="Köln"), call("time")]),
    ),
    "kimi": (
        KIMI,
        "<think>Rain?</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:4"
        f"<|tool_call_argument_begin|>{KOELN}<|tool_call_end|><|tool_calls_section_end|>",
        Heard("I look.", "Rain?", [call(city="Köln")]),
    ),
    "kimi, within its thoughts": (
        KIMI,
        "<think>Rain? <|tool_calls_section_begin|><|tool_call_begin|>functions.time:0"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        Heard("", "Rain?", [call("time")]),
    ),
    "gpt-oss": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Rain?<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + KOELN,
        Heard("I look.", "Rain?", [call(city="Köln")]),
    ),
    "gpt-oss, named before": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Rain?<|end|>"
        f"<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{KOELN}<|call|>",
        Heard("", "Rain?", [call(city="Köln")]),
    ),
    "gpt-oss, for a tool that is none": (
        GPT_OSS,
        "<|channel|>commentary to=functions.rm <|constrain|>json<|message|>{}<|call|>",
        Heard("{}"),
    ),
    "gpt-oss answers": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Easy.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello <|end|> all",
        Heard("Hello  all", "Easy."),
    ),
    "gpt-oss without channels": (GPT_OSS, '{"a": 1}', Heard('{"a": 1}')),
    "gemma": (
        GEMMA,
        "<|channel>thought\nRain?<channel|>I look.<|tool_call>"
        'call:weather{city:<|"|>Köln, {am} Rhein<|"|>,days:3,exact:false,more:{a:[1,<|"|>x<|"|>],b:{}}}'
        "<tool_call|><|tool_call>call:time{}<tool_call|>",
        Heard(
            *("I look.", "Rain?"),
            [
                call(city="Köln, {am} Rhein", days=3, exact=False, more={"a": [1, "x"], "b": {}}),
                call("time"),
            ],
        ),
    ),
    "seed": (
        SEED,
        "<seed:think>Rain?</seed:think><seed:tool_call>\n<function=weather>\n"
        "<parameter=city>Köln</parameter>\n</function>\n</seed:tool_call>",
        Heard("", "Rain?", [call(city="Köln")]),
    ),
    "granite": (
        GRANITE,
        f'<|tool_call|>[{{"name": "weather", "arguments": {KOELN}}}]',
        Heard("", "", [call(city="Köln")]),
    ),
    "olmo": (
        OLMO,
        "I look.\n<function_calls>\nweather(city='K\\\\ö\\'n', days=3, exact=True,\n more={'a': [null, -1.5]}"
        ")\ntime()\n</function_calls>",
        Heard(
            "I look.\n", "", [call(city="K\\ö'n", days=3, exact=True, more={"a": [None, -1.5]}), call("time")]
        ),
    ),
    "olmo, for a tool that is none": (
        OLMO,
        "<function_calls>rm()</function_calls>",
        Heard("<function_calls>rm()</function_calls>"),
    ),
    "llama 4": (
        LLAMA_4,
        '<|python_start|>[weather(city="Köln"), time()]<|python_end|>',
        Heard("", "", [call(city="Köln"), call("time")]),
    ),
    "llama 4, in JSON": (
        LLAMA_4,
        f'<|python_start|>{{"name": "weather", "parameters": {KOELN}}}<|python_end|>',
        Heard("", "", [call(city="Köln")]),
    ),
    "llama 4, without its tag": (LLAMA_4, "[weather(city='Köln')]", Heard("", "", [call(city="Köln")])),
    "glm 4": (
        GLM_4,
        f"weather\n{KOELN}<|assistant|>time\n{{}}<|observation|>",
        Heard("", "", [call(city="Köln"), call("time")]),
    ),
    "glm 4 answers": (GLM_4, f"weather\n{KOELN} is it", Heard(f"weather\n{KOELN} is it")),
    "command": (
        COMMAND,
        "<|START_THINKING|>Rain?<|END_THINKING|><|START_ACTION|>[\n"
        f'    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {KOELN}}}\n]<|END_ACTION|>',
        Heard("", "Rain?", [call(city="Köln")]),
    ),
    "what is no call": (
        KIMI,
        "A <|tool_calls_section_begin|><|tool_call_begin|>functions.rm:0<|tool_call_argument_begin|>{} so",
        Heard("A functions.rm:0{} so"),
    ),
    "a word for a control token": (DEEPSEEK, "Say it: <think>.", Heard("Say it: <think>.")),
}


def _reader(family: Family, **options: Any) -> Any:
    return reader(family.shown, family.special, schemas=SCHEMAS, prompt=family.prompt, **options)


def _same(found: Heard, expected: Heard) -> bool:
    return (found.text, found.thoughts, found.calls) == (expected.text, expected.thoughts, expected.calls)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_read(case: tuple[Family, str, Heard]) -> None:
    family, said, expected = case
    found = heard(_reader(family), [spelled(said, family.special)])
    assert (found.text, found.thoughts, found.calls) == (expected.text, expected.thoughts, expected.calls)


@given(case=st.sampled_from(list(CASES.values())), data=st.data())
def test_how_it_is_cut_makes_no_difference(case: tuple[Family, str, Heard], data: st.DataObject) -> None:
    family, said, expected = case
    pieces = data.draw(st.composite(cut)(spelled(said, family.special)))
    assert _same(heard(_reader(family), pieces), expected)


_WORDS = """
<tool_call> </tool_call> <function= </function> weather time > <parameter= city </parameter> <think> </think>
<arg_key> </arg_key> <arg_value> </arg_value> { } [ ] , : ; functions. final <minimax:tool_call> call:
<seed:tool_call> to=functions.time <function_calls> </function_calls> weather( city= ' \\ )
"""
WORDS = [*re.findall(r"\S+", _WORDS), '"', " ", "\n", '{"name": "time"}', '<invoke name="', '">', "x" * 1500]


@given(
    family=st.sampled_from(
        [
            *(HERMES, CODER, GLM, LLAMA, MISTRAL, MINIMAX, DEEPSEEK, KIMI, GPT_OSS, GEMMA, SEED),
            *(OLMO, LLAMA_4, GLM_4, COMMAND),
        ]
    ),
    data=st.data(),
)
def test_nonsense_is_text_and_is_read_alike(family: Family, data: st.DataObject) -> None:
    words = [*WORDS, *family.special]
    said = spelled("".join(data.draw(st.lists(st.sampled_from(words), max_size=20))), family.special)
    pieces = data.draw(st.composite(cut)(said))
    assert _same(heard(_reader(family), pieces), heard(_reader(family), [said]))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plain_words_are_shown_at_once(case: tuple[Family, str, Heard]) -> None:
    reading = _reader(case[0])
    for character in "Hello all":
        found = heard(reading, [character], flush=False)
        assert (found.text + found.thoughts).strip() == character.strip()


def test_half_calls_that_were_held_back_are_let_go_at_once() -> None:
    """A gateway's loop stands still meanwhile. It took a minute while each half call looked at all of the
    text behind it."""
    half = "\n<function_calls>\nweather(city="
    held = "[weather(city='" + half * 40_000
    reading = _reader(OLMO)
    assert not heard(reading, [held], flush=False).text
    began = time.process_time()
    assert heard(reading, ["' no"]).text == held + "' no"
    assert time.process_time() - began < 10


def test_ids_are_those_that_templates_take() -> None:
    kimi = heard(_reader(KIMI), [spelled(CASES["kimi"][1], KIMI.special)])
    assert kimi.ids == ["functions.weather:4"]
    names = heard(_reader(MISTRAL), [spelled(CASES["mistral, names"][1], MISTRAL.special)])
    assert [len(each) for each in names.ids] == [9, 9]
    assert names.ids[1] == "123456789"
    forced = heard(_reader(KIMI, forced=True), ['{"name": "time"}'])
    assert forced.ids == ["functions.time:0"]
    usual = heard(_reader(HERMES), [CASES["hermes"][1]])
    assert usual.ids[0].startswith("call_")


def test_a_forced_call_may_come_after_thoughts() -> None:
    found = heard(_reader(GLM, forced=True), ["Rain?</think>", '\n{"name": "time", "arguments": {}}'])
    assert (found.text, found.thoughts, found.calls) == ("", "Rain?", [call("time")])


def test_one_call_alone_where_only_one_is_wanted() -> None:
    said = spelled(CASES["deepseek v3.1"][1], DEEPSEEK.special)
    assert heard(_reader(DEEPSEEK, parallel=False), [said]).calls == [call(city="Köln")]
    said = spelled(CASES["gpt-oss"][1] + "<|call|>", GPT_OSS.special)
    again = said.replace("Köln", "Bonn")
    assert heard(_reader(GPT_OSS, parallel=False), [said, again]).calls == [call(city="Köln")]


def test_an_answer_that_is_gone_on_with_has_no_thoughts_at_its_beginning() -> None:
    dialect = dialect_of(HERMES.shown, ())
    assert dialect.continued("<think>a") == "</think>"
    assert dialect.continued("<think>a</think>b") == ""
    assert heard(_reader(HERMES, continues=True), ["<think>"]).text == "<think>"
    found = heard(_reader(GPT_OSS, continues=True), [spelled(" on<|return|>", GPT_OSS.special)])
    assert found.text == " on"


def test_what_the_prompt_has_closed_is_no_thought() -> None:
    dialect = dialect_of(HERMES.shown, ())
    assert dialect.opened("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert dialect.closed("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert dialect.opened("<|im_start|>assistant\n") == ""
    assert not dialect.closed("<|im_start|>assistant\n")
