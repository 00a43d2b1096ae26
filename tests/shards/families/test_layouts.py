"""The same model in other layouts: as the hub has it, as transformers holds it, as MLX and old converters
write it. Every tensor is read as the same numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.tensors import model_tensors
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError

from . import gguf_files
from .gguf_files import write_gguf
from .models import ids, logits, saved, small_model
from .test_families import EXECUTORS, assert_close, computed, through

mx = pytest.importorskip("mlx.core")
Tensors = dict[str, np.ndarray]
EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")


def rewritten(folder: Path, change: Callable[[Tensors], Tensors], **settings: Any) -> Path:
    """The checkpoint in ``folder`` with other tensors, and other settings; None: without."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)
    document = json.loads((folder / "config.json").read_text()) | settings
    kept = {key: value for key, value in document.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def contents(checkpoint: Checkpoint) -> Tensors:
    return {name: checkpoint.tensor(name).dequantize() for name in model_tensors(checkpoint.config)}


def read(path: Path) -> Tensors:
    with open_checkpoint(str(path)) as checkpoint:
        return contents(checkpoint)


def assert_same(ours: Tensors, wanted: Tensors) -> None:
    assert ours.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


def of_experts(tensors: Tensors) -> tuple[Tensors, dict[tuple[str, str], np.ndarray]]:
    """The other tensors, and those of experts stacked: (what they belong to, which matrix) → (experts, …)."""
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    others = {}
    for name, value in tensors.items():
        if match := EXPERT.fullmatch(name):
            found.setdefault((match[1], match[3]), {})[int(match[2])] = value
        else:
            others[name] = value
    return others, {key: np.stack([each[at] for at in range(len(each))]) for key, each in found.items()}


def as_transformers_holds_them(tensors: Tensors) -> Tensors:
    others, stacks = of_experts(tensors)
    for (home, part), value in stacks.items():
        if part == "gate_proj":
            both = np.concatenate((value, stacks[home, "up_proj"]), 1)
            others[f"{home}.experts.gate_up_proj"] = both
        elif part == "down_proj":
            others[f"{home}.experts.down_proj"] = value
    return others


def as_mlx_writes_them(tensors: Tensors) -> Tensors:
    others, stacks = of_experts(tensors)
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return others | {
        f"{home}.switch_mlp.{names.get(part, part)}.weight": value for (home, part), value in stacks.items()
    }


@pytest.mark.parametrize("case", ["qwen3_moe", "qwen2_moe-mixed", "deepseek_v3", "ernie4_5_moe", "dots1"])
def test_experts_in_one_tensor(case: str, tmp_path: Path) -> None:
    _, folder = saved(case, tmp_path)
    wanted = read(folder)
    assert_same(read(rewritten(folder, as_transformers_holds_them)), wanted)


@pytest.mark.parametrize("case", ["qwen3_moe", "mixtral", "minimax_m2"])
def test_experts_stacked_by_mlx(case: str, tmp_path: Path) -> None:
    _, folder = saved(case, tmp_path)
    wanted = read(folder)
    assert_same(read(rewritten(folder, as_mlx_writes_them)), wanted)


def test_experts_quantized_by_mlx(tmp_path: Path) -> None:
    """Their columns that come in groups of 32; an expert is a part of the stack, and not decoded."""
    _, folder = saved("qwen3_moe", tmp_path)
    decoded: Tensors = {}

    def quantized(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, value in as_mlx_writes_them(tensors).items():
            if "switch_mlp" not in name or value.shape[-1] % 32:
                found[name] = value
                continue
            stem = name.removesuffix(".weight")
            parts = mx.quantize(mx.array(value), group_size=32, bits=4)
            whole = np.array(mx.dequantize(*parts, group_size=32, bits=4))
            for expert, matrix in enumerate(whole):
                decoded[name.replace("switch_mlp", f"experts.{expert}")] = matrix
            parts = map(np.array, parts)
            found |= dict(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
        return found

    rewritten(folder, quantized, quantization={"group_size": 32, "bits": 4})
    with open_checkpoint(str(folder)) as checkpoint:
        assert decoded
        for name, values in decoded.items():
            tensor = checkpoint.tensor(name)
            assert tensor.qtype == "MLX4_32_F32"
            np.testing.assert_allclose(tensor.dequantize(), values, rtol=1e-6, atol=1e-6)


def test_gpt_oss_in_mxfp4(tmp_path: Path, sessions: Callable[..., Any]) -> None:
    """As on the hub. Experts of both files, GGUF's too, are taken as they are and computed by transformers
    with what it makes of them."""
    model = small_model("gpt_oss-mxfp4")
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    kept: Tensors = {}

    def packed(tensors: Tensors) -> Tensors:
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, cols, rows = tensors.pop(name).shape
            blocks = rng.integers(0, 256, (experts, rows, cols // 32, 16), np.uint8)
            scales = rng.integers(121, 125, blocks.shape[:-1], np.uint8)
            kept.update({f"{name}_blocks": blocks, f"{name}_scales": scales})
        return tensors | kept

    rewritten(tmp_path, packed, quantization_config={"quant_method": "mxfp4"})
    with torch.no_grad():
        for name, value in model.named_parameters():
            if f"{name}_blocks" in kept:
                parts = (torch.from_numpy(kept[f"{name}{end}"]) for end in ("_blocks", "_scales"))
                value.copy_(convert_moe_packed_tensors(*parts, dtype=torch.float32))
    with open_checkpoint(str(tmp_path)) as checkpoint:
        name = "model.layers.1.mlp.experts.2.up_proj.weight"
        assert checkpoint.tensor(name).qtype == checkpoint.manifest[name].qtype == "MXFP4"
        assert_close(computed(checkpoint, ids(model)), logits(model))
        for kind in EXECUTORS:
            assert_close(through(checkpoint, ids(model), sessions, **kind), logits(model))
        ours = contents(checkpoint)
    path = write_gguf(model, tmp_path / "model.gguf", quantize="MXFP4", only="_exps")
    assert_same(read(path), ours)
    rewritten(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if not k.endswith("_scales")})
    with pytest.raises(CheckpointError, match=r"has .*gate_up_proj_blocks without .*_scales"):
        open_checkpoint(str(tmp_path))


def test_names_of_before(tmp_path: Path) -> None:
    """Kimi K2 is DeepSeek-V3; the count of experts has two names, and rope lies beside its theta."""
    _, folder = saved("deepseek_v3", tmp_path / "kimi")
    wanted = read(folder)
    assert_same(read(rewritten(folder, dict, model_type="kimi_k2")), wanted)
    _, folder = saved("qwen3_moe", tmp_path / "qwen")
    wanted = read(folder)
    before = {"num_experts": 5, "num_local_experts": None, "rope_parameters": None, "rope_theta": 10000.0}
    assert_same(read(rewritten(folder, dict, **before)), wanted)
    rewritten(folder, dict, num_experts=6)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.0\.mlp\.experts\.5|has shape"):
        open_checkpoint(str(folder))


def test_kimi_that_sees(tmp_path: Path) -> None:
    """As on the hub: transformers writes other names than it reads."""
    _, folder = saved("deepseek_v3", tmp_path)
    wanted = read(folder)
    text = json.loads((folder / "config.json").read_text()) | {"model_type": "kimi_k2"}
    text.pop("architectures")
    whole = {"model_type": "kimi_k25", "architectures": ["KimiK25ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps({**whole, "text_config": text, "vision_config": {}}))
    seen = dict.fromkeys(("vision_tower.encoder.final_layernorm.weight", "mm_projector.proj.0.weight"))

    def inside(tensors: Tensors) -> Tensors:
        text = {f"language_model.{name}": value for name, value in tensors.items()}
        return text | {name: np.zeros(4, np.float32) for name in seen}

    assert_same(read(rewritten(folder, inside)), wanted)


def test_blocks_that_guess_further_tokens_are_not_read(tmp_path: Path) -> None:
    _, folder = saved("deepseek_v3", tmp_path)
    wanted = read(folder)

    def more(tensors: Tensors) -> Tensors:
        last = {name: value for name, value in tensors.items() if name.startswith("model.layers.2.")}
        guess = {name.replace("layers.2", "layers.3"): value for name, value in last.items()}
        return {**tensors, **guess, "model.layers.3.eh_proj.weight": np.zeros((64, 128), np.float32)}

    with open_checkpoint(str(rewritten(folder, more))) as checkpoint:
        assert (checkpoint.config.n_blocks, checkpoint.config.next_blocks) == (3, 1)
        assert_same(contents(checkpoint), wanted)
    rewritten(folder, dict, num_nextn_predict_layers=0)
    with pytest.raises(UnsupportedModelError, match=r"does not use: 'model\.layers\.3\."):
        open_checkpoint(str(folder))


def test_blocks_behind_the_last_of_other_families_are_refused(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path)
    rewritten(folder, dict, num_hidden_layers=2, num_nextn_predict_layers=1)
    with pytest.raises(UnsupportedModelError, match=r"does not use: 'model\.layers\.2\."):
        open_checkpoint(str(folder))


def changed(path: Path, change: Callable[[Tensors], Tensors], **keys: int | list[bool] | None) -> Path:
    """The GGUF file ``path`` with other tensors and numbers; None: without. ``__`` in keys is a point."""
    reader = gguf.GGUFReader(path)
    fields = {key: each.contents() for key, each in reader.fields.items() if not key.startswith("GGUF.")}
    arch = fields.pop("general.architecture")
    for key, value in keys.items():
        fields[f"{arch}.{key.replace('__', '.')}"] = value
    target = path.with_stem(f"{path.stem}-changed")
    writer = gguf.GGUFWriter(target, arch)
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_string(key, value)
    for name, value in change({each.name: np.array(each.data) for each in reader.tensors}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_gguf_latent_attention_of_before(tmp_path: Path) -> None:
    """Keys and values of heads in one tensor, and the sizes of a head where those of the cache are now."""
    path = write_gguf(small_model("deepseek_v3"), tmp_path / "model.gguf")

    def together(tensors: Tensors) -> Tensors:
        for block in range(3):
            keys = tensors.pop(f"blk.{block}.attn_k_b.weight").swapaxes(1, 2)
            values = tensors.pop(f"blk.{block}.attn_v_b.weight")
            both = np.concatenate((keys, values), 1)
            tensors[f"blk.{block}.attn_kv_b.weight"] = both.reshape(-1, both.shape[-1])
        return tensors

    sizes = {"attention__key_length": 18, "attention__value_length": 14, "attention__head_count_kv": 4}
    new = dict.fromkeys(("attention__key_length_mla", "attention__value_length_mla"))
    assert_same(read(changed(path, together, **sizes, **new)), read(path))


def test_gguf_experts_of_2023(tmp_path: Path) -> None:
    """Each expert's matrix by itself."""
    path = write_gguf(small_model("mixtral"), tmp_path / "model.gguf")

    def apart(tensors: Tensors) -> Tensors:
        for name in [name for name in tensors if "_exps" in name]:
            for expert, matrix in enumerate(tensors.pop(name)):
                tensors[name.replace("_exps", f".{expert}")] = matrix
        return tensors

    assert_same(read(changed(path, apart)), read(path))


def test_gguf_blocks_that_guess_further_tokens(tmp_path: Path) -> None:
    model = small_model("glm4_moe")
    path = write_gguf(model, tmp_path / "model.gguf")

    def more(tensors: Tensors) -> Tensors:
        guess = {n.replace("blk.2", "blk.3"): each for n, each in tensors.items() if n.startswith("blk.2.")}
        return {**tensors, **guess, "blk.3.nextn.eh_proj.weight": np.zeros((64, 128), np.float32)}

    path = changed(path, more, block_count=4, nextn_predict_layers=1)
    with open_checkpoint(str(path)) as checkpoint:
        assert (checkpoint.config.n_blocks, checkpoint.config.next_blocks) == (3, 1)
        assert_close(computed(checkpoint, ids(model)), logits(model))
    with pytest.raises(UnsupportedModelError, match=r"layers is 2, but block 2 has no tensor nextn\.\*"):
        open_checkpoint(str(changed(path, dict, nextn_predict_layers=2)))
    with pytest.raises(CheckpointError, match="layers is 5, expected a whole number from 0 to 4"):
        open_checkpoint(str(changed(path, dict, nextn_predict_layers=5)))


@pytest.mark.parametrize(
    ("case", "number"),
    [("gpt_oss", 0), ("gpt_oss", 1), ("gpt_oss", 3), ("granitemoeshared", 1), ("mixtral", 1), ("mixtral", 3)]
    + [("llama4_text", 2), ("minimax_m2", 2), ("olmoe", 1), ("ernie4_5_moe", 1), ("phimoe", 0), ("dots1", 0)],
)
def test_a_gguf_file_may_say_what_makes_scores_of_experts(case: str, number: int, tmp_path: Path) -> None:
    path = write_gguf(small_model(case), tmp_path / "model.gguf")
    with open_checkpoint(str(path)) as plain:
        wanted = plain.config
    with open_checkpoint(str(changed(path, dict, expert_gating_func=number))) as checkpoint:
        assert checkpoint.config == wanted


@pytest.mark.parametrize(
    ("case", "number", "message"),
    [("gpt_oss", 2, "2, which is not supported"), ("mixtral", 2, "2, which is not supported")]
    + [("olmoe", 3, "3, which is not supported"), ("ernie4_5_moe", 3, "3, which is not supported")]
    + [("llama4_text", 1, "1, which is not supported"), ("phimoe", 1, "1, which is not supported")]
    + [("deepseek_v3", 4, "4, expected a whole number from 1")],
)
def test_scores_of_experts_that_a_family_does_not_have_are_refused(
    case: str, number: int, message: str, tmp_path: Path
) -> None:
    path = write_gguf(small_model(case), tmp_path / "model.gguf")
    with pytest.raises((CheckpointError, UnsupportedModelError), match=f"expert_gating_func is {message}"):
        open_checkpoint(str(changed(path, dict, expert_gating_func=number)))


@pytest.mark.parametrize(("number", "scores"), [(1, "softmax"), (2, "sigmoid"), (3, "softmax_of_used")])
def test_deepseek_scores_experts_as_a_gguf_file_says(number: int, scores: str, tmp_path: Path) -> None:
    path = changed(
        write_gguf(small_model("deepseek_v3"), tmp_path / "model.gguf"), dict, expert_gating_func=number
    )
    with open_checkpoint(str(path)) as checkpoint:
        assert {b.experts.router.scores for b in checkpoint.config.blocks if b.experts} == {scores}


@pytest.mark.parametrize(
    ("types", "wanted"),
    [(True, [None] * 3), ([True, False, True], [None, 0, None]), ([True, False, False, True], [None, 0, 0])],
)
def test_which_blocks_have_an_indexer_is_read_from_a_gguf_file(
    types: bool | list[bool], wanted: list[int | None], tmp_path: Path
) -> None:
    """A list may also tell of the blocks that guess further tokens; without one, tensors do."""
    shared = {"indexer_types": ["full" if of is None else "shared" for of in wanted]}
    path = write_gguf(small_model("glm_moe_dsa", **shared), tmp_path / "model.gguf")
    with open_checkpoint(str(path)) as checkpoint:
        assert [block.index_of for block in checkpoint.config.blocks] == wanted
    with open_checkpoint(str(changed(path, dict, attention__indexer__types=None))) as checkpoint:
        assert [block.index_of for block in checkpoint.config.blocks] == wanted
    path = changed(path, dict, attention__indexer__types=types)
    if isinstance(types, list) and len(types) > 3:
        with pytest.raises(CheckpointError, match=r"indexer\.types is not true or false for each of 3"):
            open_checkpoint(str(path))
        return
    with open_checkpoint(str(path)) as checkpoint:
        assert [block.index_of for block in checkpoint.config.blocks] == wanted


def test_an_expert_of_a_stack_is_not_copied(tmp_path: Path) -> None:
    path = write_gguf(small_model("qwen3_moe"), tmp_path / "model.gguf")
    with open_checkpoint(str(path)) as checkpoint:
        whole = MappedFile(path)
        tensor = checkpoint.tensor("model.layers.1.mlp.experts.3.gate_proj.weight")
        base = tensor.stored
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert base.nbytes == whole.size
        whole.close()


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        (
            "qwen3_moe",
            {"num_local_experts": 10**9},
            "num_local_experts is 1000000000, expected a whole number",
        ),
        ("qwen3_moe", {"num_local_experts": 4}, "gate.weight .*has shape"),
        ("qwen3_moe", {"num_experts_per_tok": 6}, "experts of a token is 6, expected"),
        ("deepseek_v3", {"n_group": 3}, "8 experts cannot be divided into 3 groups"),
        ("deepseek_v3", {"n_group": 8, "topk_group": 2}, "a token takes 3 experts of 2 groups of 1"),
        ("deepseek_v3", {"n_group": 8, "topk_group": 4}, "groups of 1 expert have no two best ones"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax', which is not supported"),
        ("deepseek_v3", {"attention_bias": True}, "latent attention with norms, biases"),
        ("deepseek_v2-groups", {"topk_method": "best"}, "topk_method is 'best', expected greedy or"),
        ("deepseek_v3", {"kv_lora_rank": 16}, "has shape"),
        ("deepseek_v32", {"index_topk": 0}, "index_topk is 0, expected a whole number from 1"),
        ("deepseek_v32", {"index_n_heads": 8}, "wq_b.weight .*has shape"),
        ("deepseek_v32", {"index_head_dim": 4}, "heads smaller than their turned part"),
        ("deepseek_v32", {"layer_types": ["full_attention"] * 3}, "layer_types has 'full_attention'"),
        ("deepseek_v32", {"indexer_rope_interleave": True}, "indexer_rope_interleave is True, which is not"),
        ("glm_moe_dsa", {"indexer_types": ["full"] * 2}, "expected full or shared for each of 3 blocks"),
        ("glm_moe_dsa", {"indexer_types": ["shared"] * 3}, "expected full for the first block"),
        ("glm_moe_dsa", {"indexer_types": ["full", "half", "full"]}, "expected full or shared"),
        ("glm_moe_dsa", {"indexer_types": ["full", "shared", "full"]}, "has tensors that its config"),
        ("glm_moe_dsa-shared", {"indexer_types": ["full"] * 7}, "has no tensor .*indexer"),
        ("phimoe", {"num_experts_per_tok": 3}, "sparsemixer with 3 experts a token"),
        ("ernie4_5_moe", {"moe_norm_min": 0.5}, "moe_norm_min is 0.5, expected"),
        ("hunyuan_v1_moe", {"moe_topk": [1, 2, 1]}, "expected one number for all blocks"),
        ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported"),
        ("olmoe", {"clip_qkv": 4.0}, "clip_qkv is 4.0, which is not supported"),
        ("llama4_text", {"moe_layers": [1, 2]}, "has no tensor|does not use"),
    ],
)
def test_what_is_not_understood_is_refused(
    case: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _, folder = saved(case, tmp_path)
    rewritten(folder, dict, **settings)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message):
        open_checkpoint(str(folder))


def test_a_stack_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    _, folder = saved("qwen3_moe", tmp_path)
    rewritten(folder, as_transformers_holds_them)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    for change, message in (
        (lambda value: value[:, :-1], r"gate_up_proj .*has shape \[5, 23, 64\], the configuration says"),
        (lambda value: value.astype(np.int32), "gate_up_proj .*has type I32, which is not supported"),
    ):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        save_file({**tensors, name: change(tensors[name])}, file)
        with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as refused:
            open_checkpoint(str(folder))
        assert refused.value.hint
        save_file(tensors, file)


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_keys_and_values_of_blocks_that_read_anothers_are_not_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published files have them."""
    model, folder = saved("gemma4_text-reads", tmp_path)
    wanted = read(folder)

    def more(tensors: Tensors) -> Tensors:
        part = "model.layers.{}.self_attn.{}_proj.weight"
        extra = {part.format(5, name): np.ones((32, 64), np.float32) for name in ("k", "v")}
        return tensors | extra | {"model.layers.5.self_attn.k_norm.weight": np.ones(16, np.float32)}

    if form == "hf":
        assert_same(read(rewritten(folder, more)), wanted)
        return
    state = gguf_files._state
    monkeypatch.setattr(gguf_files, "_state", lambda model: more(state(model)))
    assert_same(read(write_gguf(model, tmp_path / "more.gguf")), wanted)
