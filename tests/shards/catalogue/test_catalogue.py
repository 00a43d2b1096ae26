"""The catalogue's facts: compared with published numbers of parameters, and with the sizes of real files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from swarm_node.shards.catalogue.catalogue import (
    CatalogueFiles,
    catalogue,
    find_in_catalogue,
    near_in_catalogue,
    short_name,
)
from swarm_node.shards.catalogue.stored import MIXTURES, native_of
from swarm_node.shards.checkpoint.opening import is_hub_name
from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.formats.gguf.reader import open_gguf
from swarm_node.shards.formats.gguf.tensors import gguf_tensors
from swarm_node.shards.formats.tensors import needed_tensors
from swarm_node.swarm.names import MAX_NAME_CHARS

PARAMETERS = {
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-coder-480b": 480_154_875_392,
    "llama3.2-1b": 1_235_814_400,
    "llama3.1-8b": 8_030_261_248,
    "llama3.3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "deepseek-v3": 671_026_419_200,
    "kimi-k2": 1_026_408_232_448,
    "phi-4": 14_659_507_200,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_248_023_552,
    "kimi-linear-48b": 49_122_681_728,
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 742_489_344,
    "lfm2-1.2b": 1_170_340_608,
}
"""As the hub counts the tensors of the text part, or as the makers publish it, to the last one."""

BILLIONS = {
    "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 116.8,
    "glm-4.5-air": 106.9,
    "glm-4.5": 352.8,
    "minimax-m2": 228.7,
    "gemma3-1b": 1.0,
    "gemma4-26b-a4b": 25.2,
    "gemma4-31b": 30.7,
    "mixtral-8x7b": 46.7,
    "deepseek-v2-lite": 15.7,
    "olmo2-32b": 32.2,
    "seed-oss-36b": 36.2,
    "nemotron3-nano-30b": 31.6,
    "nemotron3-super-120b": 120.7,
    "granite4-h-tiny": 6.9,
    "granite4-h-small": 32.2,
    "falcon-h1-7b": 7.6,
    "falcon-h1-34b": 33.6,
    "lfm2-8b-a1b": 8.34,
}
"""As the makers publish it, in thousands of millions."""

FILES = {
    "llama3.1-8b": {"Q4_K_M": 4_920_734_176, "Q8_0": 8_540_771_328},
    "llama3.2-1b": {"Q4_K_M": 807_694_464},
    "llama3.2-3b": {"Q4_K_M": 2_019_377_696},
    "qwen3-8b": {"Q4_K_M": 5_027_783_872},
    "gpt-oss-20b": {"MXFP4": 13_761_264_768},
}
"""Bytes of files on the hub, vocabulary and all."""

ALL = {model.name: model for model in catalogue()}


@pytest.mark.parametrize("name", ALL)
def test_each_model_runs_and_can_be_named(name: str) -> None:
    """Its configuration is read as a file's would be, by a family of the table."""
    model = ALL[name]
    family = FAMILIES[model.config.family]
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)
    assert model.title
    assert model.licence
    assert is_hub_name(model.repo)
    assert native_of(model.config) == model.kinds[-1]
    if model.gguf:
        assert set(model.mixtures) <= set(MIXTURES)
        assert family.gguf is not None or family.name == "mistral"  # whose GGUF files say llama
    needed = set(needed_tensors(model.config, None, False))
    for kind in model.kinds:
        files = CatalogueFiles(model, kind)
        assert is_hub_name(files.hub_name)
        assert len(files.hub_name) <= MAX_NAME_CHARS
        assert find_in_catalogue(files.hub_name) == files
        assert find_in_catalogue(f"{name}:{kind.lower()}") == files
        manifest = files.manifest()
        assert set(manifest) == needed
        assert files.nbytes == sum(info.nbytes for info in manifest.values())


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("gemma3n-e2b", (*range(19), 30)),
        ("gemma4-e2b", (*range(14), 35)),
        ("gemma4-e4b", (*range(23), 42)),
        ("glm-5.2", (0, 1, *range(2, 79, 4))),
        ("deepseek-v3.2", tuple(range(62))),
    ],
)
def test_models_are_cut_where_the_guide_says(name: str, cuts: tuple[int, ...]) -> None:
    assert ALL[name].config.cuts == cuts


def test_names_are_unique() -> None:
    names = Counter([*ALL, *(model.repo for model in catalogue()), *(m.gguf for m in catalogue() if m.gguf)])
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_figures_give_the_published_number_of_parameters(name: str) -> None:
    assert ALL[name].parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_the_figures_give_the_published_billions(name: str) -> None:
    assert ALL[name].parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.05)


@pytest.mark.parametrize("name", FILES)
def test_sizes_are_those_of_real_files(name: str) -> None:
    """But for the header, which has the vocabulary: at most 1 %."""
    for kind, nbytes in FILES[name].items():
        assert CatalogueFiles(ALL[name], kind).nbytes == pytest.approx(nbytes, rel=0.01)


@pytest.mark.model
def test_the_demo_model_is_as_the_catalogue_says(smollm2_path: Path) -> None:
    config, tensors = gguf_tensors(open_gguf(smollm2_path))
    model = ALL["smollm2-135m"]
    shapes = {name: info.shape for name, info in model.default.manifest().items()}
    assert {name: info.shape for name, info in tensors.manifest.items()} == shapes
    assert config.max_position_embeddings == model.config.max_position_embeddings
    assert [len(model.default.block_bytes), model.config.n_blocks] == [config.n_blocks] * 2
    tensors.close()


def test_names_of_people() -> None:
    found = find_in_catalogue("Qwen3-8B")
    assert found is not None
    assert (found.model.name, found.kind, found.hub_name) == (
        "qwen3-8b",
        "Q4_K_M",
        "unsloth/Qwen3-8B-GGUF:Q4_K_M",
    )
    native = find_in_catalogue("Qwen/Qwen3-8B")
    assert native is not None
    assert native.kind == "BF16"
    assert native.hub_name == "Qwen/Qwen3-8B"
    assert short_name("Qwen/Qwen3-8B") is None
    assert short_name("qwen3-8b:bf16") == native
    assert find_in_catalogue("qwen3-8b:Q1_0") is None
    assert find_in_catalogue("nothing") is None
    assert near_in_catalogue("qwen3-8b:Q1_0") == ["qwen3-8b:Q4_K_M", "qwen3-8b:Q8_0", "qwen3-8b:BF16"]
    assert "qwen3-8b" in near_in_catalogue("qwen38b")
