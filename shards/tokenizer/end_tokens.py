"""Tokens that end an answer, known by their text where a file does not name them all.

Many files name one end of a text only, and not the one that their chat template ends a turn with. The names
are facts of llama.cpp's ``src/llama-vocab.cpp`` at commit 0c1e57098, which also stops at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TURN_ENDS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>")
    + ("<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]")
    + ("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[")
)
"""Ends of turns of models in use. None of them is spelled like ordinary text."""
FILE_ENDS = frozenset(
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>")
    + ("<REPO>", "<reponame>", "<|file_sep|>")
)
"""Tokens with which a model that fills in code goes on to another file: the answer is over."""
ALL_ENDS = TURN_ENDS | FILE_ENDS
FILL_MARKS = frozenset(
    (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
    )
    + (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
    )
    + (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
    )
    + ("<|prefix|>", "<|suffix|>", "<|middle|>")
)
"""Marks around code that is to be filled in: they are neither ends nor text."""


def looks_like_a_mark(token: str) -> bool:
    """True for a token such as ``<start_of_turn>`` or ``[INST]``, and false for words, signs and
    whitespace."""
    return len(token) > 2 and not any(end.isalnum() or end.isspace() for end in (token[0], token[-1]))


def end_tokens(named: Iterable[int], found: Mapping[str, int]) -> frozenset[int]:
    """``named``: by the model's files. ``found``: those of its tokens that are among ``ALL_ENDS``."""
    ends = {**found}
    answers_in_parts = {"<|call|>", "<|return|>"} <= ends.keys() or (
        "<|flush|>" in ends and not ends.keys().isdisjoint(("<|call|>", "<|calls|>"))
    )
    left_out = set()
    if answers_in_parts and "<|end|>" in ends:
        left_out.add(ends["<|end|>"])  # ends a part of an answer: thoughts, before what is said
    if "<|tool_response>" in ends and "</s>" in ends:
        left_out.add(ends["</s>"])  # a tag of HTML there
    return frozenset({*named, *ends.values()} - left_out)
