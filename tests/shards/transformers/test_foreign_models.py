"""Models that only transformers knows, cut into two spans, against transformers itself."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from swarm_node.node.auto.machine import measure_machine
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.serving.serve import node_config
from swarm_node.node.config import NodeConfig
from swarm_node.node.loaded_span import LoadedSpan
from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.tensors import needed_tensors
from swarm_node.shards.formats.transformers.config import foreign_config
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.shards.families.cases import SMALL
from tests.shards.families.models import TOKENS, ids, logits, randomise
from tests.shards.models.test_devices import pretend

CASES: dict[str, dict[str, Any]] = {
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "doge": {"num_experts": 16},
    "falcon": {},
    "falcon-alibi": {"alibi": True, "multi_query": False, "bias": True},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_neox-tied": {"use_parallel_residual": False, "tie_word_embeddings": True},
    "gpt_neox_japanese": {},
    "gptj": {"rotary_dim": 8},
    "helium": {"head_dim": 16},
    "jais2": {},
    "mpt": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 5},
    "xglm": {},
    "nanochat": {},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 40},
    "persimmon": {},
    "phi": {},
}
EXACT = LoadOptions(dtype="float32")
CHUNKS = (5, 1, 17, 6)
PAGES = 2


def foreign_model(case: str) -> Any:
    torch.manual_seed(len(case))
    config = transformers.AutoConfig.for_model(case.split("-")[0], **{**SMALL, **CASES[case]})
    return randomise(transformers.AutoModelForCausalLM.from_config(config))


class Chain:
    """Two spans and a client: what three machines of a swarm hold."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        count = checkpoint.config.n_blocks
        self.client = load_client_model(checkpoint, EXACT)
        self.spans = [load_backend(checkpoint, span, EXACT) for span in (Span(0, 1), Span(1, count))]
        self.pools = [span.new_pool(3 * PAGES * len(span.span), "float32") for span in self.spans]

    def step(self, *parts: tuple[int, int, Any]) -> list[np.ndarray]:
        """Logits of each part: number of its session, position of its first token, tokens."""
        x = self.client.embed(np.concatenate([np.asarray(tokens) for _, _, tokens in parts]))
        for span, pool in zip(self.spans, self.pools, strict=True):
            blocks, slices, row = len(span.span), [], 0
            for session, start, tokens in parts:
                first = session * PAGES * blocks
                table = np.arange(first, first + PAGES * blocks, dtype=np.int32).reshape(blocks, PAGES)
                slices.append(BatchSlice(table, span.span.start, row, start, len(tokens)))
                row += len(tokens)
            x = span.forward(x, slices, pool)
        return np.split(self.client.logits(x), np.cumsum([len(tokens) for _, _, tokens in parts])[:-1])

    def fork(self, session: int, new: int) -> None:
        for span, pool in zip(self.spans, self.pools, strict=True):
            count = PAGES * len(span.span)
            held = range(session * count, (session + 1) * count)
            pool.copy_slots(held, range(new * count, (new + 1) * count))


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    model = foreign_model(case)
    model.save_pretrained(tmp_path)
    tokens, theirs = ids(model).numpy(), logits(model).numpy()
    other = tokens[::-1].copy()
    with torch.no_grad():
        of_other = model(torch.from_numpy(other)[None]).logits[0].numpy()
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.config.family == case.split("-")[0]
        chain = Chain(checkpoint)
        assert {span.kernels for span in chain.spans} == {chain.client.kernels} == {"transformers"}
        ours, start = [], 0
        for count in CHUNKS:
            ours += chain.step((0, start, tokens[start : start + count]))
            start += count
        assert_equal(np.concatenate(ours), theirs)
        # A fork; then the first session goes back, and both go on side by side.
        chain.fork(0, 1)
        back, forked = chain.step((0, 9, tokens[9:]), (1, TOKENS - 1, tokens[-1:]))
        assert_equal(back, theirs[9:])
        assert_equal(forked, theirs[-1:])
        both = chain.step((2, 0, other[:13]), (1, 20, tokens[20:]))
        assert_equal(both[0], of_other[:13])
        assert_equal(both[1], theirs[20:])
        assert_equal(chain.step((2, 13, other[13:]))[0], of_other[13:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["flex_olmo", "gpt2", "falcon"])
def test_sixteen_bits_pass_the_self_test(case: str, dtype: str, tmp_path: Path) -> None:
    foreign_model(case).save_pretrained(tmp_path, max_shard_size="50KB")
    with open_checkpoint(str(tmp_path)) as checkpoint:
        span = load_backend(checkpoint, Span(0, 3), LoadOptions(dtype=dtype))
        exact = load_backend(checkpoint, Span(0, 3), EXACT)
        assert span.weight_bytes * 2 == exact.weight_bytes


def test_what_its_layers_cannot_do_is_refused(neox: Path) -> None:
    with open_checkpoint(str(neox)) as checkpoint:
        for options in (
            LoadOptions(device="mlx"),
            LoadOptions(quantize="int4"),
            LoadOptions(kernels="native"),
            LoadOptions(deterministic=True),
        ):
            with pytest.raises(UsageError, match="transformers' own layers"):
                load_backend(checkpoint, Span(0, 1), options)


def test_a_machine_is_measured_with_made_up_blocks(neox: Path) -> None:
    with open_checkpoint(str(neox)) as checkpoint:
        measured = measure_machine(NodeConfig(model=str(neox)), checkpoint.config, checkpoint.manifest, 1)
        real = load_backend(checkpoint, Span(0, 1), LoadOptions())
    assert measured.kernels == "transformers"
    assert measured.shape.block_bytes == real.weight_bytes


@pytest.mark.parametrize(("mps", "device"), [(True, "mps"), (False, "cpu")])
async def test_a_mac_chooses_a_device_that_computes_the_model(
    neox: Path, monkeypatch: pytest.MonkeyPatch, mps: bool, device: str
) -> None:
    pretend(monkeypatch, "darwin", "arm64", mlx=True, mps=mps)
    config, asked = (
        replace(
            node_config(build_parser().parse_args(["serve", "--model", str(neox), *words]), neox), threads=1
        )
        for words in ((), ("--device", "mlx"))
    )
    assert (config.device, asked.device) == ("mlx", "mlx")
    with open_checkpoint(str(neox)) as checkpoint:
        model, manifest = checkpoint.config, checkpoint.manifest
        assert config.for_model(model).device == device
        assert config.for_model(replace(model, foreign=None)).device == "mlx"
        with pytest.raises(UsageError, match="there is no --device mlx"):
            measure_machine(asked, model, manifest, 1)
        if mps:  # which no machine of the tests has
            return
        assert measure_machine(config, model, manifest, 1).device == device
        loaded = await LoadedSpan.load(config, checkpoint, Span(0, 1), threads=1)
        assert (loaded.device, loaded.kernels) == (device, "transformers")
        ref = ModelRef("neox", "ab" * 32, model.n_blocks)
        info = loaded.announced(NodeInfo("a", (), ref, Span(0, 1), NodeState.ONLINE))
        assert info.weights.endswith(", transformers")
        await loaded.aclose()


UNFIT: dict[str, tuple[str, dict[str, Any]]] = {
    "doge": (  # its router mixes tokens
        "compute in parts another thing",
        {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    ),
    "mamba": ("'mamba' has blocks that keep a state", {}),
    "rwkv": ("'rwkv' has blocks that keep a state", {}),
    "jamba": ("'jamba' has blocks that keep a state", {"mamba_d_state": 4}),
    "deepseek_v4": ("'deepseek_v4' has keys of several tokens together", {}),
    "minimax": ("'minimax' has blocks that keep a state", {}),
}


@pytest.mark.parametrize("family", UNFIT)
def test_what_cannot_be_cut_is_refused(family: str, tmp_path: Path) -> None:
    says, more = UNFIT[family]
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **more})
    randomise(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=says):
        Chain(open_checkpoint(str(tmp_path)))


def test_states_are_found_in_families_that_nobody_named() -> None:
    document = transformers.AutoConfig.for_model("jamba", **SMALL).to_dict()
    with pytest.raises(UnsupportedModelError, match="block 0 of JambaForCausalLM keeps a state besides keys"):
        foreign_config(document, {}, "config.json")


@pytest.fixture
def neox(tmp_path: Path) -> Path:
    foreign_model("gpt_neox").save_pretrained(tmp_path)
    return tmp_path


def test_a_node_reads_its_own_blocks_alone(neox: Path) -> None:
    with open_checkpoint(str(neox)) as checkpoint:
        config, every = checkpoint.config, set(checkpoint.manifest)
        parts = [set(needed_tensors(config, Span(block, block + 1), client=False)) for block in range(3)]
        client = set(needed_tensors(config, None, client=True))
        assert set.union(client, *parts) == every
        assert sum(map(len, parts)) + len(client) == len(every)
        assert client == {
            "gpt_neox.embed_in.weight",
            "gpt_neox.final_layer_norm.weight",
            "gpt_neox.final_layer_norm.bias",
            "embed_out.weight",  # lm_head is its name in transformers' model
        }


def changed(folder: Path, **changes: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_attention_heads": 0}, "transformers cannot run"),
        ({"model_type": "no_such_thing"}, "no_such_thing"),
        ({"model_type": "segformer"}, "transformers"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_hostile_configurations_are_refused(neox: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=says):
        open_checkpoint(changed(neox, **changes))


def test_code_of_a_checkpoint_is_never_run(neox: Path) -> None:
    (neox / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    with open_checkpoint(changed(neox, auto_map=auto_map)) as checkpoint:
        Chain(checkpoint)
    with pytest.raises(UnsupportedModelError):
        open_checkpoint(changed(neox, model_type="evil", auto_map=auto_map))


@pytest.mark.parametrize("change", [{"intermediate_size": 44}, {"vocab_size": 62}])
def test_a_tensor_of_another_shape_is_refused(neox: Path, change: dict[str, Any]) -> None:
    with (
        open_checkpoint(changed(neox, **change)) as checkpoint,
        pytest.raises(CheckpointError, match="has shape"),
    ):
        Chain(checkpoint)


def test_a_missing_tensor_is_refused(neox: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tensors of layers\.3"):
        open_checkpoint(changed(neox, num_hidden_layers=4))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a well-known encoder": (
        {"model_type": "bert", "architectures": ["BertModel"]},
        "no causal language model",
    ),
    "a well-known state": ({"model_type": "mamba2"}, "has blocks that keep a state"),
    "an unknown type": ({"model_type": "invented"}, "'invented' is not supported"),
    "code of its own": (
        {"model_type": "invented", "auto_map": {"AutoModelForCausalLM": "a.B"}},
        "auto_map.* is never run",
    ),
    "another architecture": (
        {"architectures": ["GPTNeoXModel"]},
        "'GPTNeoXModel' is no causal language model$",
    ),
    "sizes that do not fit": ({"hidden_size": 65}, "of this config.json: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_do(
    neox: Path, case: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, says = REFUSED[case]
    if case.startswith("a well-known"):
        monkeypatch.setitem(sys.modules, "transformers", None)  # nobody installs it for nothing
    with pytest.raises(UnsupportedModelError, match=says) as raised:
        open_checkpoint(changed(neox, **changes))
    assert "Choose a model of a family that runs" in raised.value.hint
    assert "\n" not in raised.value.message
    assert capfd.readouterr().err == ""


def test_without_transformers_a_person_reads_what_to_install(
    neox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedModelError, match="gpt_neox") as raised:
        open_checkpoint(str(neox))
    assert 'pip install -e ".[hf]"' in str(raised.value.hint)
