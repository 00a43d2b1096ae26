"""Requests for a message, or for the tokens that one takes, read and checked."""

from __future__ import annotations

from dataclasses import dataclass

from ...guided.guide import Guide
from ...params import GenerateOptions
from ..requests.fields import BodyFields
from ..requests.guides import made, schema_guide
from ..requests.request import MAX_MODEL_NAME, ChatRequest
from ..requests.sampling import LEAST_TOP_P, MAX_LENGTH, MAX_STOP_LENGTH, MAX_STOPS, Sampling
from ..requests.thinking import Thinking
from ..requests.tools import Tools
from ..requests.unknown_fields import passed_over
from .content import read_chat
from .tools import read_tools

EFFORTS = ("low", "medium", "high", "xhigh", "max")
HARMLESS = frozenset(
    ("metadata", "service_tier", "inference_geo", "user_profile_id", "workspace_id", "diagnostics")
    + ("cache_control", "citations", "caller", "toolset_name", "eager_input_streaming")
)
"""These concern billing, caching and tracing, and do not change an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRequest(ChatRequest):
    """``hides_thinking``: the answer says that the model thought, and not what."""

    hides_thinking: bool = False


def read_message(value: object) -> MessageRequest:
    """Raises ApiError, which names the field."""
    body = BodyFields(value)
    model = body.text("model", longest=MAX_MODEL_NAME)
    chat = read_chat(body)
    body.refuse("container")
    body.refuse("mcp_servers", [], why="this gateway calls no servers; give their tools by input_schema")
    body.refuse("speed", "standard", why="there is one speed here")
    tools = read_tools(body)
    guide, field = _guide(body, tools)
    thinking, hides = _thinking(body)
    return MessageRequest(
        model=model,
        chat=chat,
        sampling=_sampling(body),
        stream=body.flag("stream") or False,
        tools=tools,
        guide=guide,
        guide_field=field,
        thinking=thinking,
        hides_thinking=hides,
        ignored=passed_over(body, HARMLESS),
    )


def _sampling(body: BodyFields) -> Sampling:
    options: GenerateOptions = {"stop": body.texts("stop_sequences", most=MAX_STOPS, longest=MAX_STOP_LENGTH)}
    if "" in options["stop"]:
        raise body.wrong("stop_sequences", "holds an empty text")
    temperature = body.number("temperature", 0, 2)
    options["temperature"] = 1.0 if temperature is None else temperature
    if (top_p := body.number("top_p", 0, 1)) is not None:
        options["top_p"] = top_p or LEAST_TOP_P
    if (top_k := body.integer("top_k", 0, MAX_LENGTH)) is not None:
        options["top_k"] = top_k
    return Sampling(options, max_tokens=body.integer("max_tokens", 1, MAX_LENGTH), fits=True)


def _guide(body: BodyFields, tools: Tools) -> tuple[Guide | None, str]:
    """The guide, and the field that asks for it. A required tool call is one too."""
    output = body.inner("output_config")
    asking = output if output is not None and output.has("format") else body
    field = "format" if asking is output else "output_format"  # as it was called in its beta
    form = asking.inner(field)
    if tools.forced is not None:
        if form is not None:
            raise asking.wrong(field, "cannot be given beside a tool that must be called")
        return tools.forced, "tools"
    if form is None:
        return None, ""
    form.one_of("type", ("json_schema",), required=True)
    schema = form.required_inner("schema").raw_all()
    return made(form.name("schema"), lambda: schema_guide(schema, strict=True)), form.name("schema")


def _thinking(body: BodyFields) -> tuple[Thinking, bool]:
    """What is wished of it, and whether it is not to be shown."""
    output, config = body.inner("output_config"), body.inner("thinking")
    effort = output.one_of("effort", EFFORTS) if output is not None else None
    if config is None:
        return effort, False
    kind = config.one_of("type", ("enabled", "disabled", "adaptive"), required=True)
    config.integer("budget_tokens", 1, MAX_LENGTH)  # how long a model thinks, it alone decides
    hides = config.one_of("display", ("summarized", "omitted")) == "omitted"
    return (False if kind == "disabled" else effort or True), hides
