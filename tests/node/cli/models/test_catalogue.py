"""``models --catalogue``: a table of 80 columns, one model, and JSON."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from swarm_node.node.cli.models.catalogue import entry, named, short_bytes, short_count, show_catalogue, table
from swarm_node.node.cli.models.models import run_models
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared import output
from swarm_node.shards.catalogue.catalogue import catalogue
from swarm_node.swarm.errors import UsageError


def test_the_table_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.answers.width = 80
    try:
        output.print_table(table(catalogue()))
    finally:
        output.answers.width = None
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) == len(catalogue()) + 2, "no cell is broken into lines"
    assert max(map(len, map(str.rstrip, lines))) <= 80
    assert "…" not in text
    assert "qwen2.5-coder-32b" in text
    assert "Q4_K_M 19.8 GB" in text
    marked = {line.split()[0] for line in lines if line.split()[0].endswith("*")}
    assert marked == {f"{model.name}*" for model in catalogue() if not model.checked}
    assert "devstral-small*" in marked


async def test_one_model_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    await run_models(build_parser().parse_args(["models", "--catalogue", "gpt-oss-20b"]))
    text = capsys.readouterr().out
    assert "20.9B parameters" in text
    assert "13.8 GB, 477 MB a block: openai/gpt-oss-20b" in text
    # half of 24 blocks see 128 tokens, of which a session holds 23 pages; 8 heads of 64, twice, float16
    assert "memory beside the weights: 18 MB a session + 25 MB per 1000 tokens" in text
    await run_models(build_parser().parse_args(["models", "--catalogue"]))
    assert "\n* its figures are not compared" in capsys.readouterr().out
    await run_models(build_parser().parse_args(["models", "--catalogue", "devstral-small"]))
    assert "\nits figures are not compared" in capsys.readouterr().out
    await run_models(build_parser().parse_args(["models", "--catalogue", "--json"]))
    report = json.loads(capsys.readouterr().out)
    assert report == {"catalogue": [entry(model) for model in catalogue()]}
    assert report["catalogue"][0]["checked"] is True
    assert report["catalogue"][0]["session_bytes"] == 0
    assert report["catalogue"][0]["bytes_per_1000_tokens"] == 1000 * 28 * 2 * 8 * 128 * 2
    assert report["catalogue"][0]["files"][0]["hub_name"] == "unsloth/Qwen3-0.6B-GGUF:Q4_K_M"


def test_what_it_does_not_have() -> None:
    with pytest.raises(UsageError, match="no model 'qwen38b'") as caught:
        named("qwen38b")
    assert "'qwen3-8b'" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        show_catalogue("llama3.1-8b:q3_k", as_json=False)
    assert caught.value.hint == (
        "Did you mean 'llama3.1-8b:Q4_K_M' or 'llama3.1-8b:Q8_0' or 'llama3.1-8b:BF16'?"
    )
    with pytest.raises(UsageError) as caught:
        named("~~~~")
    assert "models --catalogue" in caught.value.hint


def test_numbers_of_people() -> None:
    assert [short_count(n) for n in (134_515_008, 30_532_122_624, 1_026_408_232_448)] == [
        "0.135B",
        "30.5B",
        "1.03T",
    ]
    assert [short_bytes(n) for n in (12, 2_600_000, 404_489_000_000, 1_091_000_000_000)] == [
        "12 B",
        "2.6 MB",
        "404 GB",
        "1.09 TB",
    ]


def test_the_parser_takes_a_name_or_none() -> None:
    parsed = [
        build_parser().parse_args(words).catalogue
        for words in (["models"], ["models", "--catalogue"], ["models", "--catalogue", "x"])
    ]
    assert parsed == [None, "", "x"]
    assert isinstance(build_parser().parse_args(["models"]), Namespace)
