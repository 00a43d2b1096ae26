"""Fields of OpenAI, vLLM, llama.cpp, Ollama and others that this gateway knows and does not act on: what they
may say. Nothing is accepted that would be without effect, and unknown fields are reported."""

from __future__ import annotations

from collections.abc import Mapping

from ...http.errors import refused
from ..requests import unknown_fields
from ..requests.fields import BodyFields

UNCHANGING = frozenset(
    ("user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention")
    + ("prompt_cache_options", "cache_prompt", "keep_alive", "id_slot", "slot_id", "num_ctx", "session_id")
    + ("chat_id", "conversation_id", "message_id", "request_id", "id", "trace_id", "timings_per_token")
    + ("return_progress", "provider", "cache_control")
)
"""These concern billing, caching, scheduling and tracing, and do not change an answer."""
_OFF: Mapping[str, tuple[str, ...]] = {
    "mirostat": ("mirostat_tau", "mirostat_eta"),
    "dry_multiplier": (
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        "dry_range",
    ),
    "xtc_probability": ("xtc_threshold",),
    "dynatemp_range": ("dynatemp_exponent",),
    "smoothing_factor": ("smoothing_curve",),
}
"""Samplers that are off, at 0, and what then says nothing."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    # Values that ask for nothing; any other is refused by name.
    "add_bos_token": (True,),
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "cache_salt": (),
    "chat_template": (),
    "context": ([],),
    "detokenize": (True,),
    "do_sample": (True,),
    "documents": ([],),
    "early_stopping": (False,),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "format": ("",),
    "grammar": ("",),
    "guidance_scale": (1, 1.0),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "images": ([],),
    "include_stop_str_in_output": (False,),
    "json_schema": ({},),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "n_discard": (0,),
    "n_indent": (0,),
    "n_keep": (0, -1),
    "n_probs": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalize_nl": (False,),
    "post_sampling_probs": (False,),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (0, False),
    "raw": (False,),
    "reasoning": (),
    "repeat_last_n": (-1,),
    "response_fields": ([],),
    "return_tokens": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "samplers": ([],),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "stop_sequences": ([],),
    "stopping_strings": ([],),
    "store": (False,),
    "system": ("",),
    "t_max_predict_ms": (0, -1),
    "t_max_prompt_ms": (0, -1),
    "template": ("",),
    "tfs_z": (1, 1.0),
    "think": (),
    "thinking": (),
    "top_a": (0, 0.0),
    "truncate_prompt_tokens": (),
    "typical_p": (1, 1.0, 0, 0.0),
    "use_beam_search": (False,),
    "web_search_options": (),
}
_THINKING = "say reasoning_effort or enable_thinking, where the model's template knows one"
_GRAMMAR = 'use structured_outputs.grammar, in the notation of Lark (start: "yes" | "no")'
_WHY = {
    "format": "use response_format",
    "grammar": _GRAMMAR,
    "guided_choice": "use structured_outputs.choice",
    "guided_grammar": _GRAMMAR,
    "guided_json": "use response_format, or structured_outputs.json",
    "guided_regex": "use structured_outputs.regex",
    "images": "text is all that this gateway reads",
    "json_schema": "use response_format",
    "modalities": "text is all that this gateway can make",
    "n_probs": "use logprobs",
    "reasoning": _THINKING,
    "repeat_last_n": "penalties count the whole text here, which -1 asks for",
    "stop_sequences": "is called stop here",
    "stopping_strings": "is called stop here",
    "store": "this gateway keeps no answers",
    "system": "is a message of that role here",
    "think": _THINKING,
    "thinking": _THINKING,
}
_RESOURCES = frozenset(
    ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa")
)
_NOT_HERE = "is not supported by this gateway"


def check_known(body: BodyFields) -> None:
    """Raises ApiError for a field that asks for what is not done here."""
    for name in UNCHANGING:
        body.raw(name)
    for name, neutral in _NEUTRAL.items():
        body.refuse(name, *neutral, why=_WHY.get(name, _NOT_HERE))
    for name, more in _OFF.items():
        body.refuse(name, 0, 0.0, why=_NOT_HERE)
        for other in more:
            body.raw(other)
    options = body.inner("options")
    for name in options.raw_all() if options is not None else ():
        if name not in _RESOURCES:
            raise refused(f"options.{name}", f"is not read there: say {name!r} beside the messages")


def passed_over(fields: BodyFields) -> tuple[str, ...]:
    """The unread and unknown fields. Raises ApiError for a misspelled one."""
    return unknown_fields.passed_over(fields, UNCHANGING)
