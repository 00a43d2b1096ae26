"""From a name or a path to a connected client, and what transformers wants of its model: configurations and a
tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, GenerationConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME
from transformers.utils.chat_template_utils import get_json_schema

from ...shards.chat.template_set import ChatTemplates
from ...shards.models.client_part import ClientModel
from ...shards.tokenizer.tokenizer import Tokenizer
from ...swarm.errors import UsageError
from ..connecting import ClientOptions
from ..local_model import NO_DRAFT_MODEL, LocalModel
from ..swarm_model import SwarmModel

_OPTIONS = frozenset(ClientOptions.__annotations__) - {"initial_peers"}
_HINTS = {
    "device_map": "Use device= for embedding and head; the layers are the peers'.",
    "quantization_config": 'Use quantize= for the head ("none", "int8", "int4"); peers choose for theirs.',
    "load_in_8bit": 'Use quantize="int8".',
    "load_in_4bit": 'Use quantize="int4".',
    "gguf_file": "Give the path of the .gguf file itself.",
    "trust_remote_code": "Models with code of their own cannot be run.",
    "attn_implementation": "Attention is the peers' business.",
}
_RENDERED = "{{ messages[0].content }}"
"""A template for what is rendered already."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""Other names lead to a model on this machine or of peers, or to a GGUF file (``OWNER/NAME:Q4_K_M``)."""
_HERE = ("continue_final_message", "sanitize_control_tokens", "return_assistant_tokens_mask")
"""Options that transformers can serve only where it renders itself."""


def connect(
    name_or_path: str | PathLike[str], initial_peers: Sequence[str], options: Mapping[str, Any]
) -> tuple[PreTrainedConfig, SwarmModel, GenerationConfig | None]:
    """What a ``SwarmModelForCausalLM`` is made of. Raises as ``AutoSwarmModelForCausalLM`` says."""
    swarm = SwarmModel.connect(
        model=name_or_path, initial_peers=initial_peers, **_connect_options(dict(options))
    )
    try:
        config, generation = configurations(name_or_path, swarm.core.local)
    except BaseException:
        swarm.close()
        raise
    return config, swarm, generation


def configurations(
    name_or_path: str | PathLike[str], local: LocalModel
) -> tuple[PreTrainedConfig, GenerationConfig | None]:
    """Those that the model came with; where transformers finds none, as for a .gguf file or a model of peers,
    made of what this machine holds. None: no settings for ``generate`` came with it."""
    name = fspath(name_or_path)
    path = Path(name).expanduser()
    is_here = path.exists()
    if not ((path / CONFIG_NAME).is_file() if is_here else _HUB_NAME.fullmatch(name)):
        return _from_client_part(local, name)
    place = fspath(path) if is_here else name
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError):  # the hub cannot be reached, or has no such file
        if is_here:
            raise
        return _from_client_part(local, name)
    try:
        return config, GenerationConfig.from_pretrained(place)
    except OSError:  # there is none
        return config, None


def client_part(local: LocalModel) -> ClientModel:
    """Raises UsageError for a client whose head was not loaded by us."""
    if not isinstance(local.head, ClientModel):
        raise UsageError("this client's head was not read from a model's files", hint="Use from_pretrained.")
    return local.head


def _from_client_part(local: LocalModel, name: str) -> tuple[PreTrainedConfig, GenerationConfig]:
    model = client_part(local).config
    eos: list[int] = sorted(local.tokenizer.eos_ids)
    block = model.blocks[0]
    attention = next((each.attention for each in model.blocks if each.attention), None)
    config = LlamaConfig(
        name_or_path=name,
        vocab_size=local.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=block.mlp.inner if block.mlp else model.hidden_size,
        num_hidden_layers=model.n_blocks,
        num_attention_heads=attention.heads if attention else 1,
        num_key_value_heads=attention.kv_heads if attention else 1,
        head_dim=attention.head_dim if attention else model.hidden_size,
        rms_norm_eps=model.final_norm.eps,
        max_position_embeddings=local.context,
        tie_word_embeddings=model.tie_word_embeddings,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": attention.rope.theta if attention and attention.rope else 10_000.0,
        },  # scaling is the peers' business
        bos_token_id=model.bos_token_id,
        eos_token_id=eos or None,
    )
    return config, GenerationConfig(bos_token_id=model.bos_token_id, eos_token_id=eos or None)


def _connect_options(options: dict[str, Any]) -> dict[str, Any]:
    if "torch_dtype" in options:
        options.setdefault("dtype", options.pop("torch_dtype"))
    if isinstance(dtype := options.get("dtype"), torch.dtype):
        options["dtype"] = str(dtype).removeprefix("torch.")
    if isinstance(device := options.get("device"), torch.device):
        options["device"] = str(device)
    options.setdefault("draft", NO_DRAFT_MODEL)  # transformers' own generate drafts, if anything does
    for name in sorted(set(options) - _OPTIONS):
        raise UsageError(
            f"from_pretrained of a swarm has no option {name!r}",
            hint=_HINTS.get(name, f"Options: {', '.join(sorted(_OPTIONS))}."),
        )
    return options


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
        arguments = {name: options.pop(name) for name in set(options) - _NOT_THE_TEMPLATES}
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
_NOT_THE_TEMPLATES = frozenset(
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
