"""Chat templates as transformers renders them, in a sandbox."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from swarm_node.shards.chat.template import ChatTemplate
from swarm_node.swarm.errors import ChatTemplateError, UsageError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": "Grüße 😀"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": [True, None]}}],
    },
]


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    options.setdefault("add_generation_prompt", True)
    return ChatTemplate(source, SPECIAL).render(CHAT if messages is None else messages, **options)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{{ eos_token }}{% endfor %}",
        "{% for m in messages %}\n  {% if m.role %}\n {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
        "{%- for m in messages -%}\n  {{ m | tojson }}\n{%- endfor -%}",
        "{{ messages | tojson(indent=2) }}|{{ messages[2].tool_calls | tojson(sort_keys=true) }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% if tools is none %}no tools{% endif %}{{ documents is none }}{{ add_generation_prompt }}",
        "{% if messages[2].content is defined %}yes{% else %}no{% endif %}{{ pad_token }}",
        "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
        "{{ messages[0].content.split(' ')[0].strip() | upper }}{{ '%s' % 3 }}{{ dict(a=1) }}",
    ],
)
def test_equals_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    plain = [{key: value for key, value in message.items() if value is not None} for message in CHAT]
    rendered, _ = utils.render_jinja_template(
        [plain], chat_template=source, add_generation_prompt=True, **SPECIAL
    )
    assert render(source) == rendered[0]


@pytest.mark.parametrize(
    ("asked", "reaches"),
    [
        ("m['content'] is none", True),
        ("m.content is not none", True),
        ("m.get('x') or m.content == none", True),
        ("m.content != None", True),
        ("m['tool_calls'] is none", False),
        ("m['content'] is defined", False),
        ("m.content is string", False),
    ],
)
def test_a_template_that_asks_for_it_sees_that_a_message_has_no_content(asked: str, reaches: bool) -> None:
    source = "{% for m in messages %}{{ m.keys() | list | length }}{% if ASKED %}{% endif %};{% endfor %}"
    source = source.replace("ASKED", asked)
    said = {"role": "assistant", "content": None, "name": None}
    calls = [{"name": "f", "arguments": {}}]
    assert render(source, [{**said, "tool_calls": calls}]) == ("3;" if reaches else "2;")
    assert render(source, [said, {**said, "tool_calls": None}, {**said, "tool_calls": []}]) == "1;1;2;"
    assert render(source, [{"role": "assistant", "tool_calls": calls}]) == "2;"


def test_content_that_is_set_aside_first() -> None:
    source = "{% for m in messages %}{% set content = m.content %}{{ content is none }}{% endfor %}"
    assert render(source, [{"role": "assistant", "content": None, "tool_calls": [1]}]) == "True"


def test_tojson_keeps_html_and_unicode() -> None:
    assert render("{{ messages[0].content | tojson }}") == '"Be <brief> & \\"kind\\"."'
    assert render("{{ messages[1].content | tojson }}") == '"Grüße 😀"'


def test_the_time_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = []
    for zone in ("XXX-6", "XXX+6"):
        monkeypatch.setenv("TZ", zone)
        hours.append(int(render("{{ strftime_now('%H') }}")))
    assert abs(hours[0] - hours[1]) in (11, 12, 13)


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") == datetime.now().strftime("%Y")


def test_more_variables() -> None:
    assert (
        render("{{ tools[0].name }}{{ enable_thinking }}", tools=[{"name": "f"}], enable_thinking=False)
        == "fFalse"
    )


def test_raise_exception() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["{{ missing.x }}", "{{ 1 / 0 }}", "{{ messages[0].content + 1 }}"])
def test_failing_templates(source: str) -> None:
    with pytest.raises(UsageError, match="chat template"):
        render(source)


def test_damaged_template() -> None:
    with pytest.raises(ChatTemplateError, match="damaged"):
        _ = ChatTemplate("{% if %}", SPECIAL).variables


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_sandbox(source: str) -> None:
    with pytest.raises(UsageError):
        render(source)


def test_objects_become_inert() -> None:
    assert render("{{ messages[0].x }}", [{"role": "user", "x": object()}]) == "<object>"


@pytest.mark.parametrize("messages", [[], [{"content": "x"}], [{"role": 3}]])
def test_bad_messages(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError):
        render("x", messages)


def test_what_a_template_reads_is_known() -> None:
    source = "{% for m in messages %}{% set r = m.role %}{{ r }}{% endfor %}{{ tools }}"
    assert ChatTemplate(source, SPECIAL).variables == {"messages", "tools"}
    assert "bos_token" in ChatTemplate("{{ bos_token }}", SPECIAL).variables


HUGE = 3_000_000_000


@pytest.mark.parametrize(
    "source",
    [
        f"{{{{ 'a' * {HUGE} }}}}",
        f"{{% set n = messages|length * {HUGE} %}}{{{{ 'a' * n }}}}",
        f"{{{{ 'x'|center({HUGE}) }}}}",
        f"{{{{ '%{HUGE}s'|format('x') }}}}",
        "{{ range(99999)|list|join('x'*100000)|length }}",
        "{% for a in range(99999) %}" * 3 + "{{ 'aaaaaaaaaa' * 9 }}" + "{% endfor %}" * 3,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "a" * 2_000_000,
    ],
)
def test_a_hostile_template_is_ended_with_an_error(source: str) -> None:
    template = ChatTemplate(source, SPECIAL, origin="tiny.gguf")
    with pytest.raises(ChatTemplateError, match=r"chat template of tiny\.gguf") as caught:
        template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert caught.value.hint
    template.close()


def test_what_a_template_says_of_errors_is_short_and_printable() -> None:
    with pytest.raises(UsageError) as caught:
        render("{{ raise_exception('\x1b]0;title\x07\u202e\n' + 'x' * 100000) }}")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_text_passes_as_it_is() -> None:
    text = "Grüße 😀 \x00\x7f\ud800 \r\n"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": text}]) == text


def test_a_number_that_is_no_json_is_refused() -> None:
    with pytest.raises(UsageError, match="too large"):
        render("x", [{"role": "user", "x": 10**5000}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}",
        "{% for m in messages %}{{ m.content.rstrip() + ' ' }}</s>{% endfor %}{{ messages | length }}",
    ],
)
@pytest.mark.parametrize("content", ["1, 2, ", "a", " a\n\n", "x 1, x"])
def test_a_message_that_is_gone_on_with_equals_transformers(source: str, content: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    (expected,), _ = utils.render_jinja_template([chat], chat_template=source, continue_final_message=True)
    assert render(source, chat, continue_final_message=True, add_generation_prompt=False) == expected


def test_only_text_can_be_gone_on_with() -> None:
    for content in ("", None, [{"type": "text", "text": "x"}]):
        with pytest.raises(UsageError, match="no text to continue"):
            render("x", [{"role": "assistant", "content": content}], continue_final_message=True)
    with pytest.raises(UsageError, match="does not show it"):
        render("x", [{"role": "assistant", "content": "x"}], continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            f"{{% set c = messages[0].tool_calls[0] %}}{{% set a = (c.function or c).arguments %}}{source}",
            text,
        )
        for source, text in (
            ("{{ '<' + a + '>' }}", '<{"a": ["ö", null]}>'),
            ("{{ a }}{{ a ~ '' }}{{ a | string }}", '{"a": ["ö", null]}' * 3),
            ("{{ a | tojson }}", '{"a": ["ö", null]}'),
            ("{{ a is mapping }}{{ a is string }}{{ a.a[0] }}{{ a['a'] | length }}", "TrueFalseö2"),
            ("{% for k, v in a.items() %}{{ k }}={{ v }}{% endfor %}", "a=['ö', None]"),
        )
    ],
)
def test_arguments_are_an_object_and_json_for_a_template_that_wants_text(source: str, text: str) -> None:
    for call in ({"arguments": {"a": ["ö", None]}}, {"function": {"arguments": {"a": ["ö", None]}}}):
        assert render(source, [{"role": "assistant", "content": "", "tool_calls": [call]}]) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content }}|", "|"),
        ("{{ messages[0]['content'] + '|' }}", "|"),
        ("{% if messages[0]['content'] is none %}nothing{% endif %}", "nothing"),
        ("{% if messages[0].content is not none and 1 %}{{ messages[0].content }}{% endif %}", ""),
        ("{% set m = messages[0] %}{% if m.content is string %}x{% endif %}{{ m.content }}", ""),
    ],
)
def test_a_message_that_only_calls_says_nothing_as_the_template_can_take_it(source: str, text: str) -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    chat = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    template = ChatTemplate(source, SPECIAL)
    assert template.render_apart(chat, add_generation_prompt=True) == (text, [])
