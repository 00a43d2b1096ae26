"""What chat templates write for calls is read back to the same calls. The templates are stand-ins, in the
forms of published ones."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from swarm_node.client.parsing.dialect import dialect_of
from swarm_node.shards.chat.template import ChatTemplate
from tests.client.parsing.parsing_case import heard, spelled

ARGUMENTS: dict[str, Any] = {
    "city": "Köln 😀\n\"am\" 'Rhein', \\",
    "days": 3,
    "exact": False,
    "limit": None,
    "area": {"box": [1.5, -2, {"deep": [True, None, "it's"]}], "name": "a, b"},
    "tags": ["x", 'say "y"'],
}
TOOLS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "limit": {"type": "integer"},
            "area": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    },
    "time": None,
}
CALLS = [("weather", ARGUMENTS), ("time", {})]


class Made(NamedTuple):
    """``answer``: how the template writes an assistant's message. ``opens``: after the generation prompt.
    ``thinks``, ``speaks``, ``calls``: whether the form has thoughts, text before calls, and several calls."""

    answer: str
    special: tuple[str, ...] = ()
    opens: str = ""
    thinks: bool = True
    speaks: bool = True
    several: bool = True


_EACH = "{% for c in m.tool_calls %}{% set f = c.function %}"
_THINK = "<think>\n{{ m.reasoning_content }}\n</think>\n\n{{ m.content }}"
_CODER = (
    _EACH + "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}"
    "<parameter={{ k }}>\n"
    "{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}\n</parameter>\n"
    "{% endfor %}</function>\n</tool_call>{% endfor %}"
)
_NAMED = '{{ \'{"name": "\' + f.name + \'", "arguments": \' }}{{ f.arguments | tojson }}}'
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>")
_COMMAND = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>")
_GEMMA = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>')
_GPT_OSS = ("<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|start|>", "<|constrain|>")

MADE = {
    "Qwen3": Made(_THINK + _EACH + "\n<tool_call>\n" + _NAMED + "\n</tool_call>{% endfor %}"),
    "Qwen3-Coder": Made("{{ m.content }}" + _CODER, thinks=False),
    "Qwen3.5": Made(_THINK + _CODER, opens="<think>\n"),
    "GLM-4.6": Made(
        "\n<think>{{ m.reasoning_content }}</think>\n{{ m.content }}"
        + _EACH
        + "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
        "<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>\n{% endfor %}"
        "</tool_call>{% endfor %}",
        ("<|observation|>",),
    ),
    "GLM-4": Made(
        "{% for c in m.tool_calls %}{{ '<|assistant|>' if not loop.first }}{{ c.function.name }}\n"
        "{{ c.function.arguments | tojson }}{% endfor %}",
        ("<|observation|>", "<|assistant|>"),
        thinks=False,
        speaks=False,
    ),
    "MiniMax": Made(
        _THINK
        + "\n<minimax:tool_call>\n"
        + _EACH
        + '<invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}<parameter name="{{ k }}">'
        "{{ v | tojson | string if v is not string else v }}</parameter>\n{% endfor %}</invoke>\n{% endfor %}"
        "</minimax:tool_call>",
        opens="<think>\n",
    ),
    "DeepSeek R1": Made(
        "<think>{{ m.reasoning_content }}</think>{{ m.content }}<｜tool▁calls▁begin｜>"
        + _EACH
        + "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + f.name + '\\n```json\\n' + f.arguments "
        "+ '\\n```<｜tool▁call▁end｜>' }}{% endfor %}<｜tool▁calls▁end｜>",
        _DEEPSEEK,
        opens="<think>\n",
    ),
    "DeepSeek V3.1": Made(
        "</think>{{ m.content }}<｜tool▁calls▁begin｜>"
        + _EACH
        + "{{ '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments + '<｜tool▁call▁end｜>' }}"
        "{% endfor %}<｜tool▁calls▁end｜>",
        _DEEPSEEK,
        opens="</think>",
        thinks=False,
    ),
    "Kimi K2": Made(
        "<think>{{ m.reasoning_content }}</think>{{ m.content }}<|tool_calls_section_begin|>"
        "{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
        "{{ c.function.arguments }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>",
        (*_KIMI, "<|tool_call_end|>", "<|tool_call_argument_begin|>"),
    ),
    "Mistral": Made(
        "{{ m.content }}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ (c.function | tojson)[:-1] }}, "
        '"id": "{{ c.id[-9:] }}"}{{ ", " if not loop.last }}{% endfor %}]',
        ("[TOOL_CALLS]",),
        thinks=False,
    ),
    "Magistral": Made(
        "[THINK]{{ m.reasoning_content }}[/THINK]{{ m.content }}"
        + _EACH
        + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments }}{% endfor %}",
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    ),
    "Llama 3": Made(
        '{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": '
        "{{ f.arguments | tojson }}}",
        ("<|python_tag|>",),
        thinks=False,
        speaks=False,
        several=False,
    ),
    "Granite 3": Made(
        "{{ m.content }}<|tool_call|>[{% for c in m.tool_calls %}{{ c.function | tojson }}"
        "{{ ', ' if not loop.last }}{% endfor %}]",
        ("<|tool_call|>",),
        thinks=False,
    ),
    "Granite 4": Made(
        "{{ m.content }}" + _EACH + '<tool_call>\n{"name": "{{ f.name }}", "arguments": '
        "{{ f.arguments | string | tojson }}}\n</tool_call>"
        "{% endfor %}",
        thinks=False,
    ),
    "Phi-4-mini": Made(
        "{{ m.content }}" + _EACH + "<|tool_call|>{{ f | tojson }}<|/tool_call|>{% endfor %}",
        ("<|tool_call|>", "<|/tool_call|>"),
        thinks=False,
    ),
    "Nemotron": Made(
        _THINK
        + "\n\n<TOOLCALL>[{% for c in m.tool_calls %}{% set f = c.function %}"
        + _NAMED
        + "{{ ', ' if not "
        "loop.last }}{% endfor %}]</TOOLCALL>",
        opens="<think>\n\n",
    ),
    "Command": Made(
        "<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|><|START_ACTION|>[\n"
        "{% for c in m.tool_calls %}"
        '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}", "parameters": '
        "{{ c.function.arguments | tojson }}}{{ ',' if not loop.last }}\n{% endfor %}]<|END_ACTION|>",
        _COMMAND,
        speaks=False,
    ),
    "Seed-OSS": Made(
        "\n<seed:think>{{ m.reasoning_content }}</seed:think>\n{{ m.content }}"
        + _EACH
        + "\n<seed:tool_call>\n<function={{ f.name }}>\n"
        "{% for k, v in f.arguments | items %}<parameter={{ k }}>"
        "{{ v if v is string else v | string }}</parameter>\n"
        "{% endfor %}</function>\n</seed:tool_call>{% endfor %}",
    ),
    "Olmo 3": Made(
        "<function_calls>\n"
        + _EACH
        + "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v | tojson }}"
        "{{ ', ' if not loop.last }}"
        "{% endfor %}){{ '\n' if not loop.last }}{% endfor %}\n</function_calls>",
        thinks=False,
        speaks=False,
    ),
    "Llama 4": Made(
        "<|python_start|>[{% for c in m.tool_calls %}"
        "{{ c.function.name }}({% for k, v in c.function.arguments.items() "
        "%}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
        "{{ ', ' if not loop.last }}{% endfor %}]"
        "<|python_end|>",
        ("<|python_start|>", "<|python_end|>"),
        thinks=False,
        speaks=False,
    ),
    "Llama 4, its JSON": Made(
        "<|python_start|>{% set f = m.tool_calls[0].function %}"
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|python_end|>',
        ("<|python_start|>", "<|python_end|>"),
        thinks=False,
        speaks=False,
        several=False,
    ),
    "Gemma 4": Made(
        '{% macro show(v) %}{% if v is string %}<|"|>{{ v }}<|"|>{% elif v is boolean %}{{ v | lower }}'
        "{% elif v is mapping %}{{ '{' }}{% for k, i in v | dictsort %}{{ k }}:{{ show(i) }}"
        "{{ ',' if not loop.last }}"
        "{% endfor %}{{ '}' }}{% elif v is sequence %}[{% for i in v %}{{ show(i) }}"
        "{{ ',' if not loop.last }}"
        "{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}"
        "<|channel>thought\n{{ m.reasoning_content }}\n<channel|>{{ m.content }}"
        + _EACH
        + "<|tool_call>call:{{ f.name }}{{ show(f.arguments) }}<tool_call|>{% endfor %}",
        _GEMMA,
    ),
    "gpt-oss": Made(
        "{% set f = m.tool_calls[0].function %}<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>"
        "{{ m.content }}<|end|><|start|>assistant to=functions."
        "{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}<|call|>",
        _GPT_OSS,
        several=False,
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_calls_that_a_template_writes_are_read_back(name: str) -> None:
    made = MADE[name]
    calls = CALLS if made.several else CALLS[:1]
    message = {
        "role": "assistant",
        "content": "I look." if made.speaks else None,
        "reasoning_content": "Rain, or <sun>?",
        "tool_calls": [
            {
                "id": f"functions.{called}:{number}",
                "type": "function",
                "function": {"name": called, "arguments": arguments},
            }
            for number, (called, arguments) in enumerate(calls)
        ],
    }
    prompt = f"<bot>{made.opens}"
    source = "{% for m in messages %}" + made.answer + "{% endfor %}"
    template = ChatTemplate(source, {})
    said = template.render([message], add_generation_prompt=False)
    template.close()
    dialect = dialect_of(source, made.special)
    reading = dialect.reader(TOOLS, thinking=dialect.opened(prompt))
    found = heard(reading, [spelled(said.lstrip().removeprefix(made.opens.strip()), made.special)])
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == calls
    assert found.text.strip() == ("I look." if made.speaks else "")
    assert found.thoughts == ("Rain, or <sun>?" if made.thinks else "")
    assert dialect.closed(prompt) == (made.opens == "</think>")


def test_a_budget_of_no_thoughts_opens_them_nevertheless() -> None:
    dialect = dialect_of("<seed:think></seed:think>", ("<seed:think>", "</seed:think>"))
    closes = dialect.opened("<seed:think><seed:cot_budget_reflect>")
    found = heard(dialect.reader({}, thinking=closes), [f"None.{closes}Hello"])
    assert (found.thoughts, found.text) == ("None.", "Hello")
