"""The tokenizer that a client reads from its model, as one of transformers'."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import get_json_schema

from ...shards.chat.template_set import ChatTemplates
from ...shards.tokenizer.tokenizer import Tokenizer
from ...swarm.errors import UsageError
from ..local_model import LocalModel

_RENDERED = "{{ messages[0].content }}"
"""A template for what is rendered already."""
_HERE = ("continue_final_message", "sanitize_control_tokens", "return_assistant_tokens_mask")
"""Options that transformers can serve only where it renders itself."""


class SwarmTokenizer(PreTrainedTokenizerFast):
    """Renders the model's own chat template, which comes with the weights, in a process that can be ended.
    Templates that the caller gives are rendered by transformers itself."""

    model_template: ChatTemplates | None = None

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> Any:
        """As in transformers. Raises UsageError for options that need the template in this process."""
        template = self.model_template
        if template is None or chat_template is not None or self.chat_template != template.source:
            return super().apply_chat_template(
                conversation, tools, documents, chat_template, add_generation_prompt, **options
            )
        if asked := [name for name in _HERE if options.get(name)]:
            raise UsageError(
                f"{asked[0]} would run the model's chat template in this process, where nothing bounds it",
                hint="Where you trust the model, give chat_template=tokenizer.chat_template, too.",
            )
        arguments = {name: options.pop(name) for name in set(options) - _OPTIONS}
        schemas = tools and [tool if isinstance(tool, dict) else get_json_schema(tool) for tool in tools]
        arguments = {**self.special_tokens_map, "tools": schemas, "documents": documents, **arguments}

        def rendered(chat: Any) -> list[dict[str, str]]:
            text = template.render(
                getattr(chat, "messages", chat), add_generation_prompt=add_generation_prompt, **arguments
            )
            return [{"role": "user", "content": text}]

        several = bool(conversation) and not isinstance(conversation[0], dict)
        chats = [rendered(chat) for chat in conversation] if several else rendered(conversation)
        return super().apply_chat_template(chats, chat_template=_RENDERED, **options)


SwarmTokenizer.__name__ = PreTrainedTokenizerFast.__name__  # what save_pretrained writes down
_OPTIONS = frozenset(
    ("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs")
) | set(_HERE)
"""Options of transformers; all others are variables of the template."""


def fast_tokenizer(local: LocalModel) -> PreTrainedTokenizerFast:
    """With its special tokens and chat template; it pads on the left, with end-of-text where the model has no
    token for padding."""
    ours = local.tokenizer
    if not isinstance(ours, Tokenizer):
        raise UsageError("this client's tokenizer is not one of a model's files", hint="Bring your own.")
    special = dict(ours.special_tokens)
    if "eos_token" in special:
        special.setdefault("pad_token", special["eos_token"])
    tokenizer = SwarmTokenizer(
        tokenizer_object=Backend.from_str(ours.to_json()),
        chat_template=ours.chat_template,
        padding_side="left",
        model_max_length=local.context,
        clean_up_tokenization_spaces=False,
        **special,
    )
    if ours.has_chat_template:
        tokenizer.model_template = ours.template
    return tokenizer
