"""``generate`` over a swarm: what transformers' GenerationMixin leaves to a model, and sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import CandidateGenerator

from ...swarm.errors import UsageError
from ..swarm_model import SwarmModel
from .cache import SwarmCache


@dataclass(slots=True)
class _GenerateCall:
    """One ``generate``. ``continues``: its input ids are new tokens only. ``made``: the cache made for it."""

    continues: bool = False
    made: SwarmCache | None = None


class Here(threading.local):
    """What this thread is at. No context variable: tasks of the client would keep its value for ever."""

    session: SwarmCache | None = None
    call: _GenerateCall | None = None


class SwarmGenerationMixin(GenerationMixin):
    """Gives each ``generate`` a SwarmCache, and fits one that is not empty to the sequences it is for."""

    swarm: SwarmModel
    here: Here

    @contextmanager
    def session(self, max_tokens: int) -> Iterator[SwarmCache]:
        """Keep sequences of ``max_tokens`` at most in the swarm while the ``with`` block runs.

        Each ``generate`` of this thread that gets no ``past_key_values`` continues from what they hold: give
        it whole sequences, as always; only what differs from what is there is sent.
        """
        cache = SwarmCache(self, max_tokens)
        before, self.here.session = self.here.session, cache
        try:
            yield cache
        finally:
            self.here.session = before
            cache.close()

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' ``GenerationMixin.generate``, in its words.

        ``past_key_values`` may be a SwarmCache with whatever it holds: only what differs is sent. Sessions
        made for this call end with it, unless it returns them (``return_dict_in_generate``).
        """
        call = _GenerateCall()
        cache = kwargs.get("past_key_values")
        if cache is None and kwargs.get("use_cache", True) and (cache := self.here.session) is not None:
            kwargs["past_key_values"] = cache
        ids, mask = kwargs.get("input_ids") if inputs is None else inputs, kwargs.get("attention_mask")
        if isinstance(cache, SwarmCache) and ids is None and cache.get_seq_length():
            raise UsageError("input_ids are missing", hint="Give the whole sequences, what is held included.")
        call.continues = ids is not None and mask is not None and mask.shape[-1] > ids.shape[-1]
        before, self.here.call = self.here.call, call
        done = False
        try:
            result = super().generate(inputs, *args, **kwargs)
            done = True
        finally:
            self.here.call = before
            if call.made is not None and not (done and _is_returned(call.made, result)):
                call.made.close()
        return result

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Fits a cache that is not empty to the rows to come."""
        cache, mask, call = kwargs.get("past_key_values"), kwargs.get("attention_mask"), self.here.call
        if mask is not None and not bool(mask[:, -1].all()):
            raise UsageError(
                "a row ends with padding", hint='Pad on the left: tokenizer.padding_side = "left".'
            )
        if isinstance(cache, SwarmCache) and cache.get_seq_length():
            if call is None or not call.continues:
                cache.align(input_ids, mask)
            if cache.batch_size == len(input_ids):
                cache.batch_repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Gives ``generate`` a cache of ours, with room for the longest sequence there may be."""
        if generation_config.cache_implementation is not None:
            raise UsageError(
                f"the cache of a swarm is on its peers, not {generation_config.cache_implementation!r}",
                hint="Leave cache_implementation out.",
            )
        columns, mask = generation_config.max_length, model_kwargs.get("attention_mask")
        padding = 0 if mask is None else int((mask == 0).sum(-1).min())
        context = self.swarm.context
        cache = model_kwargs.get("past_key_values")
        if cache is not None:
            self.check_cache(cache)
            if generation_config.use_cache is False:
                raise UsageError("a cache was given, and use_cache=False", hint="Leave one of them out.")
        call = self.here.call
        if cache is not None and call is not None and call.continues:
            columns += cache.get_seq_length()
        most = context if cache is None else cache.get_max_length()
        if columns - padding > most:
            what = "model's context" if most == context else "session's limit"
            raise UsageError(
                f"up to {columns - padding} tokens, prompt included, are more than the {what} of {most}",
                hint=f"Shorten the prompt, or ask for {columns - padding - most} fewer new tokens.",
            )
        if generation_config.use_cache is False:
            return
        if cache is None:
            cache = model_kwargs["past_key_values"] = SwarmCache(self)
            if call is not None:
                call.made = cache
        else:
            cache._is_user_defined = True  # as transformers marks it
        cache.reserve(columns + (generation_config.prompt_lookup_num_tokens or 0))

    def _get_candidate_generator(
        self, generation_config: GenerationConfig, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        for name in ("assistant_early_exit", "use_mtp"):
            if getattr(generation_config, name, None):
                raise UsageError(
                    f"{name} needs the model's inner layers, which are on the peers",
                    hint="Use assistant_model or prompt_lookup_num_tokens.",
                )
        generator = super()._get_candidate_generator(
            generation_config, *args, model_kwargs=model_kwargs, **kwargs
        )
        most = model_kwargs["past_key_values"].get_max_length()
        _bound_candidates(generator, max(most, generation_config.max_length - 1))
        return generator

    def check_cache(self, cache: object) -> None:
        """Raises UsageError for one that is not this model's."""
        if not isinstance(cache, SwarmCache) or not cache.belongs_to(self.swarm):
            own = "another model's" if isinstance(cache, SwarmCache) else "no swarm's"
            raise UsageError(
                f"past_key_values are a {type(cache).__name__}, {own}",
                hint="Use SwarmCache(model), or model.session(max_tokens=...).",
            )


def _bound_candidates(generator: CandidateGenerator, most: int) -> None:
    """Let ``generator`` propose sequences of ``most`` tokens at most.

    Prompt lookup proposes what it finds, beyond ``max_length`` and the end of the sessions on the peers.
    """
    propose = generator.get_candidates

    def get_candidates(input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        candidates, logits = propose(input_ids, *args, **kwargs)
        known = input_ids.shape[1]
        drafted = max(0, min(candidates.shape[1], most) - known)
        return candidates[:, : known + drafted], None if logits is None else logits[:, :drafted]

    generator.get_candidates = get_candidates


def _is_returned(cache: SwarmCache, result: object) -> bool:
    return getattr(result, "past_key_values", None) is cache
