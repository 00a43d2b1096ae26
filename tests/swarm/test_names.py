"""What people call models, and which ones they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.names import (
    MAX_NAME_CHARS,
    ModelName,
    ambiguous,
    did_you_mean,
    digest_prefix,
    is_same_name,
    matching,
    near_names,
    nearness,
)
from swarm_node.swarm.types import ModelRef

ONE = ModelRef("demo", "ab12" * 16, 4)
TWO = ModelRef("demo", "cd34" * 16, 4)
QUANTIZED = ModelRef("SmolLM2-135M-Instruct.Q4_1", "ee" * 32, 30)
OWNED = ModelRef("HuggingFaceTB/SmolLM2-135M-Instruct", "ff" * 32, 30)


@pytest.mark.parametrize(
    ("text", "name", "digest", "root"),
    [
        ("demo", "demo", "", ""),
        ("  demo ", "demo", "", ""),
        ("owner/demo@AB12", "owner/demo", "ab12", ""),
        ("demo@" + "ab" * 32, "demo", "ab" * 32, ""),
        ("demo@sha256:" + "AB" * 32, "demo", "", "ab" * 32),
        ("a@b@abcd", "a@b", "abcd", ""),
    ],
)
def test_references_are_read(text: str, name: str, digest: str, root: str) -> None:
    assert ModelName.parse(text) == ModelName(name, digest, root)


@pytest.mark.parametrize(
    "text",
    ["", " ", "@abcd", "demo@", "demo@abc", "demo@xyzw", "demo@" + "a" * 65, "demo@sha256:abcd"]
    + ["x" * (MAX_NAME_CHARS + 1), "de\x1b[31mmo", "de\nmo", "demo\u202e"],
)
def test_what_names_no_model_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelName.parse(text)
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except UsageError:
        return
    assert 0 < len(name.name) <= MAX_NAME_CHARS
    assert ModelName.parse(str(name)).name == name.name


def test_the_nearest_kind_of_likeness_counts() -> None:
    known = ["demo", "Demo", "owner/demo", "demo.Q4_1", "demonstration"]
    assert matching("demo", known) == ["demo"]
    assert matching("DEMO", known) == ["demo", "Demo"]
    assert matching("demo.gguf", ["demo", "owner/demo"]) == ["demo"]
    assert matching("demo", known[2:]) == ["owner/demo"]
    assert matching("demo", known[3:]) == ["demo.Q4_1"]
    assert matching("demo", known[4:]) == []
    assert matching("other/demo", known[2:4]) == ["demo.Q4_1"], "another owner's model is another model"
    assert matching("owner/demo", ["demo"]) == ["demo"]


@pytest.mark.parametrize("suffix", [".Q4_1", "-Q4_K_M", "-UD-Q4_K_XL", ".IQ2_XXS", "-bf16", ".F16", "-int8"])
def test_quantizations_need_not_be_said(suffix: str) -> None:
    assert is_same_name("SmolLM2-135M", "SmolLM2-135M" + suffix)
    assert not is_same_name("SmolLM2-135M", "SmolLM2-1.7B" + suffix)


def test_models_of_one_name_are_told_apart_by_digest() -> None:
    error = ambiguous(ModelName("demo"), [ONE, TWO], "on this machine")
    assert "demo@ab12ab12ab12 or demo@cd34cd34cd34" in error.hint
    assert digest_prefix(ONE.digest, [ONE.digest, TWO.digest]) == "ab12ab12ab12"
    twin = ONE.digest[:30] + "0" * 34
    assert ONE.digest.startswith(shown := digest_prefix(ONE.digest, [twin, TWO.digest]))
    assert not twin.startswith(shown), "a stranger announces what begins alike"


@pytest.mark.parametrize(
    ("said", "known", "how"),
    [
        ("demo", "demo", 0),
        ("demo", "Demo.gguf", 1),
        ("demo", "owner/demo", 2),
        ("Owner/Demo.gguf", "demo", 2),
        ("demo", "owner/demo-Q4_1", 3),
        ("demo.Q4_1", "demo", None),
        ("owner/demo", "other/demo", None),
        ("owner/demo", "other/demo.Q4_1", None),
        ("caf\u00e9", "cafe\u0301", 1),
        ("demo", "d\u0435mo", None),
    ],
)
def test_how_near_names_are(said: str, known: str, how: int | None) -> None:
    assert nearness(said, known) == how


def test_letters_that_look_alike_are_shown_as_what_they_are() -> None:
    assert did_you_mean("demo", ["d\u0435mo"], "") == "did you mean 'd\\u0435mo'?"
    assert did_you_mean("\u6a21", ["\u6a21\u578b"], "") == "did you mean '\u6a21\u578b'?"


def test_misspelt_names_get_the_near_ones() -> None:
    names = [QUANTIZED.name, OWNED.name, "TinyLlama/TinyLlama-1.1B"]
    assert near_names("smolm2-135m-instruct", names)[0] in names[:2]
    assert near_names("tinylama-1.1b", names) == ["TinyLlama/TinyLlama-1.1B"]
    assert near_names("completely different", names) == []
    assert did_you_mean("demmo", ["demo"], "there are") == "did you mean 'demo'?"
    assert did_you_mean("zzz", ["demo"], "there are") == "there are 'demo'"
    assert did_you_mean("zzz", [], "there are") == ""
    assert near_names("x" * 100_000, names) == []
