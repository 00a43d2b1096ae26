"""Whatever the logits, what a guide lets through is what it describes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import jsonschema
import numpy as np
import pytest

from swarm_node.client.decoding.sampling import Sampler, SamplingParams
from swarm_node.client.guided import token_guide
from swarm_node.client.guided.guide import Guide
from swarm_node.client.guided.token_guide import Guides, TokenGuide
from swarm_node.client.guided.vocabulary import Vocabulary
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.confined.process import Bounds, ConfinedProcess
from swarm_node.swarm.errors import UsageError
from tests.doubles.fake_swarm import EOS, FakeSwarm
from tests.doubles.toy_model import ToyHead
from tests.doubles.vocabularies import END, KINDS

LONGEST = 400
WEARY = 120
"""Tokens after which the logits turn to what ends an answer; before that they know nothing."""
ADDRESS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 6},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
        "floor": {"type": "integer", "minimum": -2, "maximum": 163},
        "kind": {"enum": ["home", 'wo"rk', 3, None]},
    },
    "required": ["name", "floor", "kind"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "address": ADDRESS,
    "any object": {"type": "object"},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    "tuple": {"prefixItems": [{"type": "integer"}, {"const": "é中"}], "items": False, "minItems": 2},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["a", "b"]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["name", "children"],
                "additionalProperties": False,
            }
        },
    },
    "union": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "x"}, "x": ADDRESS},
                "required": ["kind", "x"],
            },
            {"type": "object", "properties": {"kind": {"const": "y"}}, "required": ["kind"]},
        ]
    },
    "joined": {"allOf": [{"type": "integer", "minimum": 10}, {"multipleOf": 7, "maximum": 200}]},
    "number": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "date": {"type": "string", "format": "date"},
    "map": {
        "type": "object",
        "additionalProperties": {"type": "null"},
        "minProperties": 1,
        "maxProperties": 2,
    },
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer) -> Iterator[Guides]:
    """More logits than tokens, as many heads have."""
    guides = Guides(tokenizer, tokenizer.vocab_size + 13)
    yield guides
    guides.close()


class Roll:
    """An answer of a model that knows nothing, at first."""

    def __init__(self, tokenizer: Tokenizer, guide: TokenGuide, seed: int, **params: Any) -> None:
        vocab_size = tokenizer.vocab_size + 13
        random = np.random.default_rng(seed)
        ends = np.zeros(vocab_size, np.float32)
        for token in range(tokenizer.vocab_size):
            text = tokenizer.token_bytes(token)
            ends[token] = 40.0 * (text[-1:] in (b'"', b"}", b"]")) - 5.0 * len(text) - 30.0 * (b"," in text)
        ends[list(tokenizer.eos_ids)] = 60.0
        sampler = Sampler(SamplingParams(seed=seed, **params), guide=guide)
        self.tokens: list[int] = []
        while not sampler.is_over and len(self.tokens) < LONGEST:
            logits = random.standard_normal(vocab_size, np.float32) * 4
            if len(self.tokens) > WEARY:
                logits += ends
            self.tokens.append(sampler.choose(logits).token)
        self.is_over = sampler.is_over
        self.text = tokenizer.decode(self.tokens)
        data = b"".join(tokenizer.token_bytes(t) for t in self.tokens if t not in tokenizer.eos_ids)
        self.exact = data.decode()  # raises for half a character


@pytest.mark.parametrize("name", SCHEMAS)
async def test_random_logits_end_in_valid_json(tokenizer: Tokenizer, guides: Guides, name: str) -> None:
    schema = SCHEMAS[name]
    guide = Guide("json_schema", schema)
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for seed, params in enumerate(
        [{}, {"temperature": 1.0}, {"temperature": 3.0, "top_k": 4, "min_p": 0.1}] * 2
    ):
        roll = Roll(tokenizer, await guides.open(guide), seed, **params)
        assert roll.is_over, roll.text
        assert roll.text == roll.exact
        checker.validate(json.loads(roll.text))


async def test_json_object(tokenizer: Tokenizer, guides: Guides) -> None:
    for seed in range(5):
        roll = Roll(tokenizer, await guides.open(Guide("json_object")), seed, temperature=1.0)
        assert isinstance(json.loads(roll.text), dict)


@pytest.mark.parametrize("expression", ["[0-9]{4}-[a-z]{2}", "(ab|c){2,5}", "é+ 中", r"[a-z]{3}\n[^a]"])
async def test_regular_expressions(tokenizer: Tokenizer, guides: Guides, expression: str) -> None:
    for seed in range(4):
        roll = Roll(tokenizer, await guides.open(Guide("regex", expression)), seed, temperature=1.0)
        assert roll.is_over
        assert re.fullmatch(expression, roll.exact)


async def test_a_grammar_with_a_schema_inside(tokenizer: Tokenizer, guides: Guides) -> None:
    grammar = f'start: "call " args | "no"\nargs: %json {json.dumps(ADDRESS)}\n'
    seen = set()
    for seed in range(12):
        text = Roll(tokenizer, await guides.open(Guide("lark", grammar)), seed, temperature=1.0).exact
        seen.add(text[:2])
        if text != "no":
            jsonschema.validate(json.loads(text.removeprefix("call ")), ADDRESS)
    assert seen == {"ca", "no"}


async def test_a_forced_text_is_never_a_special_token(tokenizer: Tokenizer, guides: Guides) -> None:
    schema = {"const": f"a {END} b"}
    roll = Roll(tokenizer, await guides.open(Guide("json_schema", schema)), 1)
    assert json.loads(roll.exact) == schema["const"]


@pytest.mark.parametrize("space", [" ", "\n", "\t"])
async def test_spaces_do_not_go_on_for_ever(tokenizer: Tokenizer, guides: Guides, space: str) -> None:
    """A model that would always rather write another one."""
    vocab_size = tokenizer.vocab_size + 13
    logits = np.random.default_rng(0).standard_normal(vocab_size, np.float32)
    for token in range(tokenizer.vocab_size):
        logits[token] += 100.0 * tokenizer.token_bytes(token).startswith(space.encode())
    for guide in (Guide("json_schema", ADDRESS), Guide("lark", f"start: %json {json.dumps(ADDRESS)}")):
        sampler, length = Sampler(SamplingParams(), guide=await guides.open(guide)), 0
        while not sampler.is_over:
            sampler.choose(logits)
            length += 1
            assert length < 900


async def test_what_is_allowed_is_what_may_be_accepted(tokenizer: Tokenizer, guides: Guides) -> None:
    """Token by token, ``allowed``, ``allows`` and ``accept`` say the same; copies are apart."""
    random = np.random.default_rng(3)
    guide = await guides.open(Guide("json_schema", ADDRESS))
    path: list[int] = []
    while not guide.is_over:
        allowed = guide.allowed().tolist()
        assert allowed == sorted(set(allowed))
        assert not set(allowed) & (tokenizer.special_ids() - tokenizer.eos_ids)
        assert max(allowed) < tokenizer.vocab_size
        if len(path) % 6 == 0:
            assert all(guide.allows(token) for token in allowed)
            refused = set(range(tokenizer.vocab_size)) - set(allowed)
            # A forced text is masked to its usual tokens; others that spell it are right as well.
            assert len(allowed) == 1 or not any(guide.allows(token) for token in refused)
        path.append(allowed[random.integers(len(allowed))])
        guide.accept(path[-1])
    again = await guides.open(Guide("json_schema", ADDRESS))
    assert not again.is_over
    for token in path:
        assert again.allows(token)
        again.accept(token)
    assert again.is_over


async def test_forced_tokens_are_what_comes(tokenizer: Tokenizer, guides: Guides) -> None:
    guide = await guides.open(Guide("lark", 'start: "name and size: " ("1" | "2") " items"'))
    vocab_size, said = tokenizer.vocab_size + 13, ""
    sampler = Sampler(SamplingParams(temperature=1.0, seed=2), guide=guide)
    drafted = 0
    while not sampler.is_over:
        forced = sampler.forced
        drafted += len(forced)
        logits = np.random.default_rng().standard_normal(vocab_size, np.float32)
        chosen = [sampler.choose(logits).token for _ in range(max(1, len(forced)))]
        assert not forced or tuple(chosen) == forced
        said += b"".join(tokenizer.token_bytes(token) for token in chosen).decode()
    assert re.fullmatch("name and size: [12] items", said)
    assert drafted >= 8
    assert sampler.forced == ()


async def test_an_empty_text_is_over_with_the_end_token(tokenizer: Tokenizer, guides: Guides) -> None:
    guide = await guides.open(Guide("lark", 'start: ""'))
    roll = Roll(tokenizer, guide, 0)
    assert set(roll.tokens) <= tokenizer.eos_ids
    assert roll.is_over


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("regex", "(a|b", "unclosed"),
        ("regex", "a(?=b)", "look-ahead"),
        ("lark", "start: x", 'unknown name: "x"'),
        ("lark", "start: @other", "@other"),
        ("lark", "foo", "grammar cannot"),
        ("json_schema", {"type": "string", "format": "zzz"}, "zzz"),
        ("json_schema", {"type": "strng"}, "strng"),
        ("json_schema", {"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf"),
        ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "nsatisfiable"),
        ("json_schema", {"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ("json_schema", {"type": "string", "pattern": "(a|b"}, "unclosed"),
        ("json_schema", {"patternProperties": {"^a": {}, "^ab": {}}, "type": "object"}, "disjoint"),
    ],
)
async def test_what_cannot_be_compiled_is_said(guides: Guides, kind: Any, source: Any, message: str) -> None:
    for _ in range(2):
        with pytest.raises(UsageError, match=message) as caught:
            await guides.open(Guide(kind, source))
        assert len(str(caught.value)) < 400
        assert caught.value.hint


async def test_guesses_are_tried_without_moving_the_guide(tokenizer: Tokenizer, guides: Guides) -> None:
    guide = await guides.open(Guide("regex", " ?(yes|no), (one|two)!"))
    vocab_size = len(guide.allowed()) + 1 + max(guide.allowed().tolist())
    sampler = Sampler(SamplingParams(), guide=guide)
    right = tokenizer.encode("no, two!", add_special=False)
    wrong = tokenizer.encode("no, 2", add_special=False)
    assert sampler.fitting()(right) == len(right)
    assert sampler.fitting()(wrong) < len(wrong)
    before = guide.allowed().tolist()
    for number, token in enumerate(right):
        assert sampler.fitting()(right[number:]) == len(right) - number
        logits = np.zeros(vocab_size + max(right), np.float32)
        logits[token] = 9.0
        assert sampler.choose(logits).token == token
    assert sampler.is_over
    assert sampler.fitting()(right) == 0
    again = (await guides.open(Guide("regex", " ?(yes|no), (one|two)!"))).copy()
    assert again.allowed().tolist() == before


def _rules(count: int, body: str, last: str) -> str:
    rules = [f"r{n}: " + body.replace("NEXT", f"r{n + 1}") for n in range(count)]
    return "\n".join(["start: r0", *rules, f"r{count}: {last}"])


HOSTILE: dict[str, Any] = {
    "repetitions in repetitions": ("regex", "((a{100}){100}){100}"),
    "optional parts": ("regex", "(a?){1000}a{1000}"),
    "deep brackets": ("regex", "(" * 64 + "a" + ")" * 64),
    "long": ("regex", ".{60000}"),
    "rules in rules": ("lark", _rules(450, "NEXT", '"a"')),
    "doubling rules": ("lark", _rules(60, "NEXT NEXT", '"a"')),
    "doubling terminals": (
        "lark",
        _rules(60, "NEXT NEXT", '"a"').replace("r", "R").replace("staRt", "start"),
    ),
    "nested terminals": (
        "lark",
        _rules(450, '("a" | NEXT)* "b"', '"c"').replace("r", "R").replace("staRt", "start"),
    ),
    "ambiguous": ("lark", 'start: start start | "a" | "b" | ""'),
    "many ways": ("lark", 'start: ((("a" | "b"){0,1000}){0,1000}){0,1000}'),
    "references": (
        "json_schema",
        {
            "$ref": "#/$defs/a0",
            "$defs": {
                **{f"a{n}": {"type": "array", "items": {"$ref": f"#/$defs/a{n + 1}"}} for n in range(1150)},
                "a1150": {"type": "null"},
            },
        },
    ),
    "joined choices": (
        "json_schema",
        {
            "allOf": [
                {"anyOf": [{"properties": {f"p{n}{m}": {"type": "string"}}} for m in range(4)]}
                for n in range(12)
            ]
        },
    ),
    "optional properties": (
        "json_schema",
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2500)}},
    ),
    "many items": ("json_schema", {"type": "array", "items": {"type": "array"}, "minItems": 10**12}),
    "long string": ("json_schema", {"type": "string", "minLength": 10**9}),
    "far numbers": ("json_schema", {"type": "number", "minimum": 1e-300, "maximum": 1.7e308}),
    "multiples": ("json_schema", {"type": "integer", "multipleOf": 99_991, "minimum": 5, "maximum": 10**15}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_guides_cost_little_and_stop_nobody(name: str) -> None:
    """Compiled or refused within seconds of processor time, while the event loop goes on; so are answers."""
    tokenizer = KINDS["byte-level"]()
    guides = Guides(tokenizer, tokenizer.vocab_size + 13)
    await guides.open(Guide("json_object"))  # the tables of the vocabulary are built once
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    cpu_s = process_time()
    guide = None
    with contextlib.suppress(UsageError):
        guide = await guides.open(Guide(*HOSTILE[name]))
    compiled_s, seen = process_time() - cpu_s, ticks
    ticking.cancel()
    if guide is not None:
        with contextlib.suppress(UsageError):
            Roll(tokenizer, guide, 1, temperature=1.0)
    guides.close()
    assert seen >= 4 * (compiled_s - 0.2)
    assert process_time() - cpu_s < 8.0


async def test_a_guide_whose_compiling_crashes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os\ndef opened(opening): return None, lambda text: os.abort() if 'evil' in text else ''"
    )
    trial = ConfinedProcess(program, (), None, Bounds(cpu_s=0))
    monkeypatch.setattr(token_guide, "TRIAL", trial)
    tokenizer = KINDS["characters"]()
    guides = Guides(tokenizer, tokenizer.vocab_size)
    with pytest.raises(UsageError, match="process ended"):
        await guides.open(Guide("regex", "evil"))
    assert (await guides.open(Guide("regex", "a+"))).allowed().tolist()
    guides.close()
    trial.close()


async def test_a_guide_that_costs_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["characters"]()
    guides = Guides(tokenizer, tokenizer.vocab_size)
    guide = await guides.open(Guide("json_object"))
    guides.close()
    monkeypatch.setattr(token_guide, "S_PER_TOKEN", -0.3)  # as if each mask took so much longer
    for _ in range(3):
        guide.allowed()
    with pytest.raises(UsageError, match="too long"):
        guide.allowed()


async def test_what_is_asked_for_again_is_not_compiled_again(tokenizer: Tokenizer) -> None:
    compiled: list[Guide] = []

    class Counting(Guides):
        def _compile(self, guide: Guide) -> Any:
            compiled.append(guide)
            return super()._compile(guide)

    guides = Counting(tokenizer, tokenizer.vocab_size)
    first, second = Guide("regex", "a+"), Guide("regex", "b+")
    opened = await asyncio.gather(*(guides.open(guide) for guide in (first, second, first, first, second)))
    assert compiled == [first, second]
    assert len({id(guide) for guide in opened}) == 5
    opened[0].accept(opened[0].allowed().tolist()[0])
    for number in range(token_guide.CACHED):
        await guides.open(Guide("regex", f"c{number}"))
    await guides.open(first)
    assert compiled.count(first) == 2
    guides.close()
    guides.close()


async def test_who_gives_up_waiting_takes_nothing_from_the_others() -> None:
    tokenizer = KINDS["characters"]()
    guides = Guides(tokenizer, tokenizer.vocab_size)
    wanted = [Guide("regex", "a+"), Guide("regex", "b+"), Guide("regex", "(")]
    impatient = [asyncio.create_task(guides.open(guide)) for guide in wanted]
    await asyncio.sleep(0)
    for task in impatient:
        task.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError)
        for end in await asyncio.gather(*impatient, return_exceptions=True)
    )
    for guide in wanted[:2]:
        assert (await guides.open(guide)).allowed().tolist()
    with pytest.raises(UsageError, match="unclosed"):
        await guides.open(wanted[2])
    guides.close()


async def test_what_nobody_waits_for_any_more_is_not_compiled(tokenizer: Tokenizer) -> None:
    compiled: list[Guide] = []
    begun, go_on = threading.Event(), threading.Event()

    class Held(Guides):
        def _compile(self, guide: Guide) -> Any:
            compiled.append(guide)
            begun.set()
            go_on.wait(20)
            return super()._compile(guide)

    guides = Held(tokenizer, tokenizer.vocab_size)
    first, shared, left = (Guide("regex", text) for text in ("a+", "b+", "c+"))
    waits = [asyncio.create_task(guides.open(guide)) for guide in (first, shared, shared, left, left)]
    await asyncio.to_thread(begun.wait, 20)
    for number in 0, 1, 3, 4:
        waits[number].cancel()
    await asyncio.gather(*waits[:2], *waits[3:], return_exceptions=True)
    go_on.set()
    assert (await waits[2]).allowed().tolist()
    assert compiled == [first, shared]
    assert (await guides.open(left)).allowed().tolist()
    guides.close()


async def test_a_guide_that_compiles_for_ever_ends_with_its_asker(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
def opened(opening):
    return None, answer

def answer(grammar):
    while "slow" in grammar: pass
    return ""
"""
    )
    trial = ConfinedProcess(program, (), None, Bounds(cpu_s=60, wall_s=60.0))
    monkeypatch.setattr(token_guide, "TRIAL", trial)
    guides = Guides(tokenizer, tokenizer.vocab_size)
    trial.opened()
    before = trial._child
    slow = [asyncio.create_task(guides.open(Guide("regex", f"slow{number}"))) for number in (1, 2)]
    await asyncio.sleep(0.1)
    for task in slow:
        task.cancel()
    async with asyncio.timeout(20):
        assert (await guides.open(Guide("regex", "fast"))).allowed().tolist()
    assert trial._child is not before
    trial.close()
    guides.close()


async def test_one_thread_compiles_and_leaves_stacks_as_they_were() -> None:
    tokenizer = KINDS["characters"]()
    guides = Guides(tokenizer, tokenizer.vocab_size)
    before, running = threading.stack_size(), set(threading.enumerate())
    await asyncio.gather(*(guides.open(Guide("regex", f"a{n}")) for n in range(8)))
    new = [thread.name for thread in threading.enumerate() if thread not in running]
    assert len([name for name in new if name.startswith("swarm-guides")]) == 1
    assert threading.stack_size() == before
    guides.close()


async def test_the_tables_can_be_built_before_the_first_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["characters"]()
    guides = Guides(tokenizer, tokenizer.vocab_size)
    await guides.prepare()
    monkeypatch.setattr(token_guide, "_vocabulary", None)
    await guides.open(Guide("regex", "a+"))
    guides.close()


async def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer = KINDS["characters"]()
    with pytest.raises(UsageError, match="llguidance") as caught:
        await Guides(tokenizer, tokenizer.vocab_size).open(Guide("json_object"))
    await Guides(tokenizer, tokenizer.vocab_size).prepare()  # nothing to prepare, and nothing wrong
    assert '".[guided]"' in caught.value.hint


def test_a_text_is_tokens_of_exactly_its_bytes(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size + 2)
    for text in ("name", ' {"name": "é"}', "a  b", f"x{END}y", f"{END}", "{" * 9, "中"):
        ids = vocabulary(text)
        assert b"".join(vocabulary.tokens[token] for token in ids) == text.encode()
        assert not set(ids) & set(vocabulary.special_token_ids)
    assert vocabulary.tokens[-2:] == [b"", b""]
    spelled = f"x{END}y"
    ids = tokenizer.encode(spelled, False, literal=[(0, len(spelled))])
    if b"".join(map(tokenizer.token_bytes, ids)) == spelled.encode() and not tokenizer.is_confined:
        assert vocabulary(spelled) == ids  # cut as any other text is


class Talker(ToyHead):
    """Any byte as likely as another; never the end."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(11)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        scores = self._random.standard_normal((len(hidden), 258), np.float32)
        scores[:, EOS] = -50.0
        return scores


async def test_answers_through_the_swarm_end_when_they_are_complete() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    schema = {**ADDRESS, "required": ["kind"]}
    async with swarm.client(Talker()) as model:
        guide = Guide("json_schema", schema)
        answers = await asyncio.gather(
            *(
                model.generate_detailed(
                    "hi", guide=guide, temperature=1.0, seed=seed, max_new_tokens=300, **more
                )
                for seed, more in enumerate([{}, {"logprobs": 2}, {"ignore_eos": True}])
            )
        )
        short = await model.generate_detailed("hi", guide=guide, max_new_tokens=4)
        with pytest.raises(UsageError, match="zzz"):
            await model.generate("hi", guide=Guide("json_schema", {"type": "string", "format": "zzz"}))
        assert (await model.generate_detailed("hi", max_new_tokens=3)).finish_reason == "length"
    for answer in answers:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), schema)
    assert short.finish_reason == "length"
    assert answers[1].logprobs is not None
    assert [len(choice.top) for choice in answers[1].logprobs] == [2] * len(answers[1].token_ids)
    assert swarm.open_sessions == 0


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_drafts_change_nothing_of_a_guided_answer(temperature: float) -> None:
    """Forced texts are drafted; each choice is the guide's all the same."""
    swarm = await FakeSwarm(latency=0.003, a="0-2", b="3-5").start()
    schema = {
        "type": "object",
        "properties": {"a_long_name": {"enum": ["a_long_value", "another"]}, "a_long_number": {"const": 1}},
        "required": ["a_long_name", "a_long_number"],
        "additionalProperties": False,
    }
    async with swarm.client() as model:
        plain, drafted = [
            await model.generate_detailed(
                "hi",
                guide=Guide("json_schema", schema),
                temperature=temperature,
                seed=5,
                speculate=speculate,
                max_new_tokens=400,
            )
            for speculate in ("off", "auto")
        ]
    assert plain.token_ids == drafted.token_ids
    assert plain.finish_reason == drafted.finish_reason == "stop"
    jsonschema.validate(json.loads(plain.text), schema)
    assert plain.speculated.drafted == 0
