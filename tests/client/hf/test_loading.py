"""``from_pretrained``: what it takes, what it makes of folders and GGUF files, and what it shares."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from scripts.lab.transformers_oracle import load_transformers
from swarm_node.client import async_model
from swarm_node.client.hf import AutoSwarmModelForCausalLM, SwarmCache
from swarm_node.client.hf.loading import configurations
from swarm_node.client.local_model import load_local_model
from swarm_node.client.session.swarm_session import SwarmSession
from swarm_node.swarm.errors import CheckpointError, SwarmError, UsageError
from tests.shards.gguf_files import write_gguf_llama

PEERS = ["/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGvzPLEyJZ1rEcBR"]


EXACT: dict[str, Any] = {"quantize": "none", "dtype": torch.float32, "wire_codec": "none"}


def test_a_folder(served: Any, tiny_folder: Path, oracle: Any) -> None:
    served(tiny_folder)
    with AutoSwarmModelForCausalLM.from_pretrained(tiny_folder, initial_peers=PEERS, **EXACT) as model:
        assert model.config.to_dict() == oracle.config.to_dict()
        assert model.generation_config.eos_token_id == oracle.generation_config.eos_token_id
        ids = model.tokenizer("Hello, swarm", return_tensors="pt").input_ids
        theirs = oracle.generate(ids, max_new_tokens=8, do_sample=False)
        assert model.generate(ids, max_new_tokens=8, do_sample=False).tolist() == theirs.tolist()
        with pytest.raises(SwarmError, match="closed"):
            model.close() or model.generate(ids)


def test_settings_of_generation_config(served: Any, tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 5, "eos_token_id": 511}')
    served(tmp_path)
    with AutoSwarmModelForCausalLM.from_pretrained(str(tmp_path), initial_peers=PEERS, **EXACT) as model:
        assert model.generation_config.eos_token_id == 511
        assert model.generate(torch.tensor([[3, 4]])).shape == (1, 7)


@pytest.mark.parametrize("qtype", ["F32", "Q4_0"])
def test_a_gguf_file(served: Any, tmp_path: Path, qtype: str) -> None:
    """Its configuration, its tokenizer, and the tokens that transformers itself makes of the file."""
    path = write_gguf_llama(tmp_path, qtype)
    oracle, tokenizer = load_transformers(path)
    served(path)
    with AutoSwarmModelForCausalLM.from_pretrained(path, initial_peers=PEERS, **EXACT) as model:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"):
            assert getattr(model.config, name) == getattr(oracle.config, name)
        assert model.generation_config.eos_token_id == [2]
        batch = model.tokenizer(["abc abd", "ab"], return_tensors="pt", padding=True)
        single = tokenizer("abc abd", return_tensors="pt")
        assert batch.input_ids[0].tolist() == single.input_ids[0].tolist()
        assert batch.attention_mask[1, 0] == 0  # on the left
        for arguments in ({}, {"num_beams": 3}):
            wanted = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, **arguments}
            theirs, ours = oracle.generate(**single, **wanted), model.generate(**single, **wanted)
            assert ours.tolist() == theirs.tolist()
        assert model.tokenizer.decode([30, 31]) == tokenizer.decode([30, 31])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"device_map": "auto"}, "device="),
        ({"load_in_4bit": True}, "int4"),
        ({"trust_remote_code": True}, "code of their own"),
        ({"attn_implementation": "sdpa"}, "peers"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"dtype": torch.int32}, "int32"),
        ({"quantize": "int3"}, "int3"),
        ({"wire_codec": "zip"}, "zip"),
    ],
)
def test_options_that_cannot_be(served: Any, tiny_folder: Path, option: dict[str, Any], words: str) -> None:
    served(tiny_folder)
    with pytest.raises(UsageError) as caught:
        AutoSwarmModelForCausalLM.from_pretrained(tiny_folder, initial_peers=PEERS, **option)
    assert words in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("name", ["tiny", "tiny@abcd", "owner/tiny", "owner/tiny-GGUF:Q4_K_M"])
def test_a_name_that_transformers_cannot_look_up(
    tiny_folder: Path, oracle: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The model is on this machine or of peers; the hub is not asked, or cannot be reached."""
    asked: list[str] = []

    def looked_up(place: str) -> None:
        asked.append(place)
        raise OSError("no such repository")

    local = load_local_model(tiny_folder, dtype="float32", quantize="none")
    monkeypatch.setattr(AutoConfig, "from_pretrained", looked_up)
    config, generation = configurations(name, local)
    local.close()
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"):
        assert getattr(config, key) == getattr(oracle.config, key)
    assert generation is not None
    assert generation.eos_token_id == sorted(local.tokenizer.eos_ids)
    assert asked == [name] * (name == "owner/tiny")


def test_a_name_of_a_model_on_this_machine(
    served: Any, tiny_folder: Path, oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "models/by-name")
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    served(tiny_folder)
    with AutoSwarmModelForCausalLM.from_pretrained("by-name", initial_peers=PEERS, **EXACT) as model:
        ids = torch.tensor([[3, 4]])
        theirs = oracle.generate(ids, max_new_tokens=8, do_sample=False)
        assert model.generate(ids, max_new_tokens=8, do_sample=False).tolist() == theirs.tolist()


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        AutoSwarmModelForCausalLM.from_pretrained(tmp_path / "nothing", initial_peers=PEERS)
    assert caught.value.hint


def test_sessions_and_head_are_those_of_our_own_loop(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client, one head, one kind of session: ``swarm.generate`` and ``generate`` share them."""
    made: list[SwarmSession] = []
    heads: list[Any] = []
    begin, logits = SwarmSession._begin, type(model._head).logits
    monkeypatch.setattr(SwarmSession, "_begin", lambda self, *args: made.append(self) or begin(self, *args))
    monkeypatch.setattr(type(model._head), "logits", lambda self, x: heads.append(self) or logits(self, x))
    ids = list(range(5, 45))
    light = model.swarm.generate_detailed(ids, max_new_tokens=6, ignore_eos=True, speculate="off")
    heavy = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert heavy[0, 40:].tolist() == list(light.token_ids)
    assert [type(session) for session in made] == [SwarmSession, SwarmSession]
    assert len(heads) == 12
    assert set(map(id, heads)) == {id(model.swarm.core.local.head)}
    with SwarmCache(model) as cache:
        model(input_ids=torch.tensor([[1, 2]]), past_key_values=cache)
        assert isinstance(cache._batch.rows[0].session, SwarmSession)


def output(code: str) -> str:
    """What a Python process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_client_does_not_load_transformers_and_says_what_to_install() -> None:
    code = (
        "import sys, swarm_node.client as c; c.SwarmModel, c.AsyncSwarmModel; import swarm_node.client.hf; "
        "import swarm_node.client.hf.rows; print('transformers' in sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "from swarm_node.swarm.errors import UsageError\n"
        "try:\n    from swarm_node.client.hf import AutoSwarmModelForCausalLM\n"
        "except UsageError as error:\n    print(error, error.hint)"
    )
    loaded, error = output(code).splitlines()
    assert loaded == "False"
    assert 'pip install -e ".[hf]"' in error


def test_nothing_below_sessions_is_used() -> None:
    """Routes, hops and wire are the shared sessions' business."""
    folder = Path(async_model.__file__).parent / "hf"
    below = {"hop", "route_session", "segment", "mend", "router", "forking", "link_pool", "codecs"}
    for file in folder.glob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text())):
            if isinstance(statement, ast.ImportFrom):
                assert not below & set((statement.module or "").split(".")), file.name
