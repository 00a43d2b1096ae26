"""The transformers model: embedding, norm and head are here, the decoder layers are the swarm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...swarm.errors import UsageError
from ..swarm_model import SwarmModel
from .cache import SwarmCache
from .generation import Here, SwarmGenerationMixin
from .loading import client_part, connect, fast_tokenizer


class SwarmModelForCausalLM(PreTrainedModel, SwarmGenerationMixin):
    """A transformers model for a swarm: ``generate`` and ``forward`` as those of any causal language model.

    Made by ``AutoSwarmModelForCausalLM.from_pretrained``. ``swarm``: the ``SwarmModel`` it works through,
    usable beside it. Wrong calls and what goes wrong in the swarm raise ``SwarmError``, also out of
    ``generate``. There are no parameters: nothing can be trained, moved or saved.
    """

    main_input_name = "input_ids"
    _supports_sdpa = True  # nothing here attends to anything

    def __init__(
        self, config: PreTrainedConfig, swarm: SwarmModel, generation_config: GenerationConfig | None = None
    ) -> None:
        """Over a client that is connected already, which ``close`` ends."""
        super().__init__(config)
        self.swarm = swarm
        self.here = Here()
        self._head = client_part(swarm.core.local)
        if generation_config is not None:
            self.generation_config = generation_config
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike[str], *, initial_peers: Sequence[str] = (), **options: Any
    ) -> Self:
        """See ``AutoSwarmModelForCausalLM``."""
        return cls(*connect(name_or_path, initial_peers, options))

    @property
    def device(self) -> torch.device:
        """Where embedding and head are."""
        return torch.device(self._head.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of hidden states and logits."""
        return torch.float32

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The model's own tokenizer, padding on the left, for GGUF files too."""
        return fast_tokenizer(self.swarm.core.local)

    def close(self) -> None:
        """Leave the swarm. Idempotent; ``with`` does it."""
        self.swarm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A step.

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SwarmCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """``input_ids`` (rows, tokens) → ``logits`` (rows, kept, vocab) float32.

        ``attention_mask`` (rows, past + tokens): columns with 0 are not part of a row's sequence; their
        logits and last hidden states are 0. ``hidden_states`` has two entries, each (rows, tokens, hidden):
        the embedding, and the last hidden states after the final norm. What lies between stays on the peers.
        Other arguments as in transformers. Raises SwarmError.
        """
        self._refuse(inputs_embeds=inputs_embeds, output_attentions=output_attentions, **kwargs)
        if input_ids is None or input_ids.ndim != 2 or not input_ids.numel():
            raise UsageError("input_ids are missing", hint="Give a tensor of (rows, tokens), at least one.")
        if past_key_values is not None:
            self.check_cache(past_key_values)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = SwarmCache(self) if past_key_values is None else past_key_values
        columns = input_ids.shape[1]
        mask = _new_columns(attention_mask, cache.get_seq_length(), input_ids)
        _check_positions(position_ids, mask, columns)
        kept = _wanted_columns(logits_to_keep, columns)
        all_states = bool(output_hidden_states or self.config.output_hidden_states)
        wanted = columns if all_states else columns - int(kept.min())
        rows = cache.feed(input_ids, mask, wanted)
        hidden = torch.zeros(len(rows), wanted, self._head.config.residual_width)
        real = (
            torch.ones(len(rows), wanted, dtype=torch.bool)
            if mask is None
            else mask[:, -wanted:].bool().cpu()
        )
        hidden[real] = torch.from_numpy(np.concatenate(rows))
        kept = kept - (columns - wanted)
        logits = self._logits(hidden[:, kept], real[:, kept])
        states = self._hidden_states(input_ids, hidden, real) if all_states else None
        if past_key_values is None and not use_cache:
            cache.close()
        output = CausalLMOutputWithPast(
            loss=None if labels is None else self._loss(logits, labels, **kwargs),
            logits=logits,
            past_key_values=cache if use_cache else None,
            hidden_states=states,
        )
        return output if return_dict or return_dict is None else output.to_tuple()

    def _logits(self, hidden: Tensor, real: Tensor) -> Tensor:
        """(rows, kept, residual) → (rows, kept, vocab), 0 where nothing is real."""
        logits = torch.zeros(*real.shape, self._head.config.vocab_size, device=self.device)
        logits[real.to(self.device)] = self._by_head(self._head.logits, hidden[real])
        return logits

    def _by_head(self, compute: Callable[[np.ndarray], np.ndarray], rows: Tensor) -> Tensor:
        return torch.from_numpy(compute(rows.numpy())).to(self.device)

    def _hidden_states(self, input_ids: Tensor, hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        embedded = torch.empty(*input_ids.shape, self._head.config.hidden_size, device=self.device)
        rows = self._head.embed(input_ids.flatten().tolist())[:, : embedded.shape[-1]]
        embedded[:] = torch.from_numpy(rows).view(embedded.shape)
        last = torch.zeros_like(embedded)
        last[real.to(self.device)] = self._by_head(self._head.final_norm, hidden[real])
        return embedded, last

    def _loss(self, logits: Tensor, labels: Tensor, **kwargs: Any) -> Tensor:
        labels = labels.to(self.device)
        return _without_gradients(
            self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        )

    def _refuse(self, **arguments: Any) -> None:
        for name, value in arguments.items():
            if value is not None and value is not False and name not in _HARMLESS:
                raise UsageError(
                    f"{name} is not possible with a swarm", hint=_WHY_NOT.get(name, "Leave it out.")
                )

    # What cannot be.

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise UsageError(
                "a model in a swarm cannot be trained",
                hint="Its weights are the peers'; use it for inference.",
            )
        return super().train(mode)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and device != self.device) or (dtype is not None and dtype != self.dtype):
            raise UsageError(
                "a model in a swarm cannot be moved or converted",
                hint="Say device= and dtype= to from_pretrained.",
            )
        return self

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("a model in a swarm cannot be saved", hint="Copy the files it was loaded from.")

    push_to_hub = save_pretrained

    def resize_token_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("the vocabulary of a swarm's model is fixed", hint="Use its own tokenizer.")

    def generate_batch(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("peers batch by themselves", hint="Call generate, from several threads if need be.")


_HARMLESS = frozenset({"cache_position", "num_items_in_batch", "tokenizer", "assistant_tokenizer"})
"""Arguments that transformers passes to every model, for those that want them."""
_WHY_NOT = {
    "inputs_embeds": "Give input_ids: a lost peer's work is repeated from them.",
    "output_attentions": "Attention weights stay on the peers.",
}


class AutoSwarmModelForCausalLM:
    """Makes a ``SwarmModelForCausalLM`` for any model that a swarm serves and this project can read."""

    def __init__(self) -> NoReturn:
        raise UsageError(
            "AutoSwarmModelForCausalLM is not a model itself; it makes models",
            hint="Call AutoSwarmModelForCausalLM.from_pretrained(name_or_path, initial_peers=[...]).",
        )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | PathLike[str], *, initial_peers: Sequence[str] = (), **options: Any
    ) -> SwarmModelForCausalLM:
        """Load embedding, norm and head, and join the swarm that has the rest.

        ``name_or_path``: a HuggingFace directory, a .gguf file, or a name on this machine, in the swarm or on
        the HuggingFace hub; the same weights that the peers serve. ``initial_peers``: addresses that
        ``swarm-node bootstrap`` or ``serve`` print. ``options``: those of ``SwarmModel.connect`` (``swarm``,
        ``swarm_key``, ``join``, ``mdns``, ``wire_codec``, ``quantize``, ``dtype``, ``device``, ``threads``,
        ``wait``, ``prefix_cache``, ``prefix_salt``, ``chain``, ``allow_sideband``, ``on_progress``);
        ``dtype`` may be a torch.dtype, and ``torch_dtype`` is the same.

        Raises what ``SwarmModel.connect`` raises, and UsageError for options of transformers that cannot be.
        """
        return SwarmModelForCausalLM.from_pretrained(name_or_path, initial_peers=initial_peers, **options)


def _new_columns(attention_mask: Tensor | None, past: int, input_ids: Tensor) -> Tensor | None:
    """The part of ``attention_mask`` (rows, past + tokens) that is about ``input_ids`` (rows, tokens); None
    where nothing is masked out."""
    if attention_mask is None:
        return None
    rows, tokens = input_ids.shape
    if attention_mask.shape != (rows, past + tokens):
        raise UsageError(
            f"an attention_mask of shape {tuple(attention_mask.shape)} is not possible here",
            hint=f"Give one of (rows, past + tokens), which is ({rows}, {past + tokens}).",
        )
    mask = attention_mask[:, past:]
    return None if bool((mask == 1).all()) else mask


def _check_positions(position_ids: Tensor | None, mask: Tensor | None, tokens: int) -> None:
    """Raises UsageError unless each row's tokens follow each other: peers count positions by themselves.

    Where a row begins does not matter: rotary embedding knows differences of positions only.
    """
    if position_ids is None or tokens < 2:
        return
    if position_ids.ndim != 2 or position_ids.shape[1] != tokens:
        raise UsageError(
            f"position_ids of shape {tuple(position_ids.shape)} are not possible here",
            hint=f"Give them as (rows, {tokens}), or leave them out.",
        )
    if mask is None:
        follow = bool((position_ids.diff(dim=1) == 1).all())
    else:
        positions = position_ids.expand(len(mask), tokens)
        follow = all(
            bool((row[kept].diff() == 1).all()) for row, kept in zip(positions, mask.bool(), strict=True)
        )
    if not follow:
        raise UsageError(
            "position_ids that skip or repeat are not possible with a swarm",
            hint="Leave them out; give each sequence a row of its own.",
        )


def _wanted_columns(logits_to_keep: int | Tensor, tokens: int) -> Tensor:
    """The columns, 0 to ``tokens`` - 1, whose logits are asked for, as transformers reads it: the last
    ``logits_to_keep``, all for 0, or those of a tensor of indices."""
    if isinstance(logits_to_keep, Tensor):
        indices = logits_to_keep.flatten().cpu().long()
        indices = torch.where(indices < 0, indices + tokens, indices)
        if not indices.numel() or not 0 <= int(indices.min()) <= int(indices.max()) < tokens:
            raise UsageError(
                f"logits_to_keep names columns outside of the {tokens} given", hint="Count from 0."
            )
        return indices
    if logits_to_keep < 0:
        raise UsageError(f"logits_to_keep={logits_to_keep} is not possible", hint="Give 0 or more.")
    return torch.arange(max(0, tokens - logits_to_keep) if logits_to_keep else 0, tokens)


class _NoGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, _: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise UsageError(
            "no gradients come back from a swarm: it cannot be trained",
            hint="Read the loss with .item(), under torch.no_grad().",
        )


def _without_gradients(value: Tensor) -> Tensor:
    """``value``, whose ``backward`` raises UsageError."""
    return _NoGradients.apply(value, torch.zeros((), requires_grad=True))
