"""What is measured: cases, each with one way to decode plainly and ways to speculate beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ....studies.speculation.prompts import CODE, chat
from .bound import law
from .prompts import COPY_IT, OTHER_WORDS, REPLACED_EVERY, TEXT, replaced
from .stand_in import Guessed, StandIn, trips_needed

if TYPE_CHECKING:
    from swarm_node.shards.tokenizer.tokenizer import Tokenizer

CHAIN, TREE = 0.74, 0.12
"""How often a stand-in's first guess is right, and, beyond that, its second one."""
BLOCK_THAT_GUESSES = StandIn((0.88, 0.82, 0.71, 0.64), most=4, guess_s=0.01)
"""As users of llama.cpp saw a model's own block that guesses, taken as the chance of each token once those
before it were right; and what such a block may take on a client's processor."""
LLAMA = "llama.cpp"
PARTS = ("copy", "replaced", "rows", "chains", "trees", "block", "novel", "harmless", "others", LLAMA)


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to speculate. ``guessed``: which tokens anybody could know, whenever they are guessed; None: that
    cannot be said. ``law``: tokens a trip on the average, at most. ``goal``: times plain decoding that are to
    be reached; 0: none."""

    name: str
    stand_in: StandIn | None = None
    guessed: Guessed | None = None
    law: float | None = None
    goal: float = 0.0

    def least_trips(self, tokens: int) -> float | None:
        """Of an answer of ``tokens`` tokens: counted, or by the law; None where neither is known."""
        if self.guessed is not None:
            return trips_needed(tokens, self.guessed)
        return None if self.law is None else (tokens - 1) / self.law


@dataclass(frozen=True, slots=True)
class Case:
    """``prompt``: as ``generate`` takes it. ``forced``: the only answer that is allowed."""

    part: str
    name: str
    prompt: Any
    new_tokens: int
    arms: tuple[Arm, ...]
    options: dict[str, Any] = field(default_factory=dict)
    forced: list[int] | None = None

    def order(self, arm: Arm | None, known: Sequence[int] | None) -> dict[str, Any]:
        """For ``Asking.answer``. ``arm``: None for plain decoding. ``known``: the answer."""
        options = {"max_new_tokens": self.new_tokens, "ignore_eos": True, **self.options}
        order: dict[str, Any] = {"prompt": self.prompt, "options": options, "forced": self.forced}
        if arm is None:
            options["speculate"] = "off"
        elif arm.stand_in is not None:
            order |= {"known": list(known or ()), "stand_in": arm.stand_in.as_dict()}
        return order


def cases(parts: Sequence[str], tokenizer: Tokenizer, *, quick: bool) -> list[Case]:
    """Of the parts that answer one prompt at a time. Quick ones are shorter."""
    made: list[Case] = []
    if {"copy", "replaced", "rows"} & set(parts):
        made += _copies(parts, tokenizer, 100 if quick else 240)
    if {"chains", "trees", "block"} & set(parts):
        arms = tuple(arm for part, arm in _stand_ins() if part in parts)
        question = chat("Explain how bees make honey, step by step.")
        made.append(Case("stand-ins", "novel text", question, 48 if quick else 128, arms))
    if "novel" in parts:
        made += _novel(32 if quick else 64)
    return made


def _stand_ins() -> list[tuple[str, Arm]]:
    arms = []
    for share, goal in ((1.0, 0.0), (0.97, 0.0), (CHAIN, 3.5)):
        stand_in = StandIn((share,))
        name = f"stand-in right {100 * share:.0f} %"
        arms.append(("chains", Arm(name, stand_in, stand_in.is_right, law((share,)), goal)))
    two = StandIn((CHAIN,), TREE)
    name = f"stand-in right {100 * CHAIN:.0f} %, second guess {100 * TREE:.0f} % more"
    arms.append(("trees", Arm(name, two, two.is_among_two, law((CHAIN + TREE,)), 3.8)))
    block = BLOCK_THAT_GUESSES
    name = "stand-in for a model's own block, right 88, 82, 71, 64 %"
    arms.append(("block", Arm(name, block, None, law(block.chances, block.most), 2.3)))
    return arms


def _copies(parts: Sequence[str], tokenizer: Tokenizer, tokens: int) -> list[Case]:
    """The text has the same tokens in the prompt and in the answer, which begins a few tokens into it."""
    text = tokenizer.encode(TEXT, False)[:tokens]
    if len(text) < tokens:
        raise ValueError(f"the text to be copied has {len(text)} tokens, not {tokens}")
    words = [token for word in OTHER_WORDS for token in tokenizer.encode(word, False)]
    before, after = (
        tokenizer.encode(part, False) for part in (f"{COPY_IT}\n\n", "\n\nThe text, word by word:\n\n")
    )
    prompt = [*before, *text, *after]

    def copy(part: str, name: str, answer: list[int], goal: float) -> Case:
        arm = Arm("the text itself", None, lambda number: answer[number] == text[number], None, goal)
        return Case(part, name, prompt, len(answer), (arm,), forced=answer)

    made = [
        copy("copy", "verbatim copy", text, 30.0),
        copy("replaced", f"copy, a word replaced every {REPLACED_EVERY} tokens", replaced(text, words), 18.0),
        copy("rows", "verbatim copy, rows of an 8B model", text, 18.0),
    ]
    return [case for case in made if case.part in parts]


def _novel(tokens: int) -> list[Case]:
    edit = chat(f"Rename the parameter path to filename and write out the whole file again:\n\n{CODE}")
    asked: list[tuple[str, Any, dict[str, Any]]] = [
        ("explanation", chat("Explain why the sky is blue, step by step."), {}),
        ("story, sampled", chat("Tell me a story about a clockmaker."), {"temperature": 1.0, "seed": 1}),
        ("poem, sampled", chat("Write a poem about the sea."), {"temperature": 1.2, "seed": 2}),
        ("code edit", edit, {}),
    ]
    arm = Arm("as it comes", goal=0.97)
    return [Case("novel", name, prompt, tokens, (arm,), options) for name, prompt, options in asked]
