"""What the tests of the gateway share: a toy model whose template takes tools, and a gateway with clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import AsyncOpenAI

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.gateway.gateway import Gateway
from swarm_node.client.gateway.server import GatewayServer
from swarm_node.shards.chat.template import ChatTemplate
from tests.doubles.fake_swarm import FakeSwarm
from tests.doubles.toy_model import BOS, ToyTokenizer

TOOL_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


class TemplateTokenizer(ToyTokenizer):
    """Bytes, and a real chat template, which takes tools."""

    def __init__(self, template: str = TOOL_TEMPLATE) -> None:
        self.chat_template = template
        self._template = ChatTemplate(template, {})

    @property
    def chat_variables(self) -> frozenset[str]:  # type: ignore[override]
        return self._template.variables

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        most: int | None = None,
        **more: Any,
    ) -> list[int]:
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt, **more)
        return [BOS, *text.encode()]


@dataclass
class Served:
    """A swarm, its client, the gateway over it, and clients of that."""

    swarm: FakeSwarm
    model: AsyncSwarmModel
    gateway: Gateway
    server: GatewayServer
    openai: AsyncOpenAI
    http: httpx2.AsyncClient

    async def chat(self, content: str = "hi", **fields: Any) -> httpx2.Response:
        body = {"model": "toy", "messages": [{"role": "user", "content": content}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def complete(self, prompt: Any = "hi", **fields: Any) -> httpx2.Response:
        return await self.http.post("/v1/completions", json={"model": "toy", "prompt": prompt, **fields})

    def prompt_of(self, *messages: Mapping[str, Any]) -> list[int]:
        return self.model.tokenizer.apply_chat_template(messages)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)


Serve = Callable[..., Awaitable[Served]]


def text_of(tokens: Sequence[int]) -> str:
    """What the toy tokenizer makes of an answer."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")
