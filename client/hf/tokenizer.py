"""The tokenizer that a client reads from its model, as one of transformers'."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from ...shards.tokenizer import Tokenizer
from ...swarm.errors import UsageError
from ..local_model import LocalModel


def fast_tokenizer(local: LocalModel) -> PreTrainedTokenizerFast:
    """With its special tokens and chat template; it pads on the left, with end-of-text where the model has no
    token for padding."""
    ours = local.tokenizer
    if not isinstance(ours, Tokenizer):
        raise UsageError("this client's tokenizer is not one of a model's files", hint="Bring your own.")
    special = dict(ours.special_tokens)
    if "eos_token" in special:
        special.setdefault("pad_token", special["eos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(ours.to_json()),
        chat_template=ours.chat_template,
        padding_side="left",
        model_max_length=local.context,
        clean_up_tokenization_spaces=False,
        **special,
    )
