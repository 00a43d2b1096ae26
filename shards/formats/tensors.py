"""Which tensors a model has: what a file offers, and what the model needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ...swarm.types import Span
from .blocks.attention import AttentionConfig, IndexerConfig, LatentConfig
from .blocks.block import BlockConfig, LaurelConfig, SideConfig, StreamsConfig
from .blocks.experts import ExpertsConfig
from .blocks.mlp import MlpConfig
from .blocks.norm import NormConfig
from .blocks.state import RecurrenceConfig, ShortConvConfig
from .config import ModelConfig
from .raw_tensor import RawTensor

T = TypeVar("T")

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
HEAD_BIAS = "lm_head.bias"
SIDE_EMBEDDING = "model.embed_tokens_per_layer.weight"
SIDE_PROJECTION = "model.per_layer_model_projection"
SIDE_NORM = "model.per_layer_projection_norm"
"""Of the values beside the residual; the last two without ``.weight``."""
SPREAD, MERGE = "model.altup_projections.{}", "model.altup_unembed_projections.{}"
"""Of several residual streams, without ``.weight``."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``shape`` as HuggingFace has it; ``qtype`` a name of ``qtypes``, or a dtype that we cannot run."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    nbytes: int


Shapes = dict[str, tuple[int, ...]]


class TensorSource(Protocol):
    """One opened model file, or several: tensors under the names of ``block_tensors``."""

    @property
    def manifest(self) -> Mapping[str, TensorInfo]: ...

    def tensor(self, name: str) -> RawTensor:
        """CheckpointError for a name that is not there."""
        ...

    def release(self) -> None: ...

    def close(self) -> None: ...


def block_tensors(config: ModelConfig, block: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one block's tensors: our names, which are Llama's where Llama has them.

    A file of another family has other names, or several of these in one tensor; its reader shows them so.
    """
    return _in_block(block, _own_tensors(config.blocks[block], config.hidden_size))


def _own_tensors(settings: BlockConfig, hidden: int) -> Shapes:
    """Of a block, without ``model.layers.N``."""
    shapes = {
        **_norm("input_layernorm", settings.norm, hidden),
        **_attention(settings.attention, hidden, makes_kv=settings.kv_of is None),
        **_state(settings.state, hidden),
        **_norm("self_attn.out_norm", settings.attention_out_norm, hidden),
        **_norm("post_attention_layernorm", settings.mlp_norm, hidden),
        **_mlp("mlp", settings.mlp, hidden),
        **_experts(settings.experts, hidden),
        **_norm("mlp.out_norm", settings.mlp_out_norm, hidden),
        **_side(settings.side, hidden),
        **_laurel(settings.laurel, hidden),
        **_streams(settings.streams, hidden),
    }
    if settings.scalar:
        shapes["scalar.weight"] = (1,)
    return shapes


def _in_block(block: int, shapes: Shapes) -> Shapes:
    return {f"model.layers.{block}.{name}": shape for name, shape in shapes.items()}


NEXT_PROJECTION = "next.projection"
NEXT_NORMS = ("next.embedding_norm", "next.hidden_norm", "next.norm")
"""Of a block that guesses further tokens, without ``.weight``: see ``NextConfig``."""


def next_tensors(config: ModelConfig) -> Shapes:
    """What such a block has beside its own tensors, as named in it; nothing for a model without any."""
    if config.next is None:
        return {}
    hidden = config.hidden_size
    shapes = _linear(NEXT_PROJECTION, hidden, 2 * hidden)
    for name in NEXT_NORMS:
        shapes |= _norm(name, config.next.norm, hidden)
    return shapes


def next_names(config: ModelConfig) -> list[str]:
    """The tensors of the first such block, of ``config.with_next``, with what it has beside them."""
    if config.next is None or not config.next_blocks:
        return []
    first = config.n_blocks
    beside = [f"model.layers.{first}.{name}" for name in next_tensors(config)]
    return [*block_tensors(config.with_next, first), *beside]


def _norm(name: str, norm: NormConfig | None, size: int) -> Shapes:
    if norm is None:
        return {}
    shapes: Shapes = {f"{name}.weight": (size,)} if norm.weighted else {}
    return shapes | ({f"{name}.bias": (size,)} if norm.bias else {})


def _linear(name: str, rows: int, cols: int, *, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, cols)}
    return shapes | ({f"{name}.bias": (rows,)} if bias else {})


def _attention(attention: AttentionConfig | None, hidden: int, *, makes_kv: bool) -> Shapes:
    if attention is None:
        return {}
    if attention.latent is not None:
        return _latent(attention, attention.latent, hidden)
    q, kv, out = attention.q_size, attention.kv_size, attention.out_size
    shapes = _linear("self_attn.q_proj", q, hidden, bias=attention.bias)
    if makes_kv:
        shapes |= _linear("self_attn.k_proj", kv, hidden, bias=attention.bias)
    if makes_kv and not attention.keys_as_values:
        shapes |= _linear("self_attn.v_proj", kv, hidden, bias=attention.bias)
    if attention.gate is not None:
        shapes |= _linear(
            "self_attn.gate_proj", out if attention.gate == "channel" else attention.heads, hidden
        )
    if (norm := attention.qk_norm) is not None:
        for part, size in (("q", q), ("k", kv)) if makes_kv else (("q", q),):
            each = size if norm.over == "all" or norm.per_head else attention.head_dim
            shapes |= _norm(f"self_attn.{part}_norm", norm.norm, each)
    shapes |= _norm("self_attn.v_norm", attention.v_norm, attention.head_dim)
    if attention.sinks:
        shapes["self_attn.sinks.weight"] = (attention.heads,)
    return shapes | _linear("self_attn.o_proj", hidden, out, bias=attention.out_bias)


def _latent(attention: AttentionConfig, latent: LatentConfig, hidden: int) -> Shapes:
    """``k_b_proj`` takes a head's nope_dim values of q to the latent, one matrix of kv_rank rows a head below
    the other; ``v_b_proj`` the latent to the head's values."""
    rank = latent.kv_rank
    if latent.q_rank:
        shapes = {
            **_linear("self_attn.q_a_proj", latent.q_rank, hidden, bias=attention.bias),
            **_norm("self_attn.q_a_layernorm", latent.norm, latent.q_rank),
            **_linear("self_attn.q_b_proj", attention.q_size, latent.q_rank),
        }
    else:
        shapes = _linear("self_attn.q_proj", attention.q_size, hidden)
    return {
        **shapes,
        **_linear("self_attn.kv_a_proj", rank + latent.rope_dim, hidden, bias=attention.bias),
        **_norm("self_attn.kv_a_layernorm", latent.norm, rank),
        **_linear("self_attn.k_b_proj", attention.heads * rank, latent.nope_dim),
        **_linear("self_attn.v_b_proj", attention.out_size, rank),
        **_linear("self_attn.o_proj", hidden, attention.out_size, bias=attention.out_bias),
        **_indexer(latent.indexer, latent.q_rank, hidden),
    }


def _indexer(indexer: IndexerConfig | None, q_rank: int, hidden: int) -> Shapes:
    if indexer is None:
        return {}
    return {
        **_linear("self_attn.indexer.wq_b", indexer.heads * indexer.head_dim, q_rank),
        **_linear("self_attn.indexer.wk", indexer.head_dim, hidden),
        **_norm("self_attn.indexer.k_norm", indexer.norm, indexer.head_dim),
        **_linear("self_attn.indexer.weights_proj", indexer.heads, hidden),
    }


def _state(state: RecurrenceConfig | ShortConvConfig | None, hidden: int) -> Shapes:
    """Convolutions have a row of taps a channel."""
    if state is None:
        return {}
    if isinstance(state, ShortConvConfig):
        projections = {f"state.{name}_proj": state.width for name in ("b", "c", "v")}
        convs = {"state.conv": state.width}
        out = _linear("state.out_proj", hidden, state.width, bias=state.bias)
        bias = conv_bias = state.bias
    else:
        sizes = {"q": state.key_size, "k": state.key_size, "v": state.inner}
        convs = {f"state.{name}_conv": size for name, size in sizes.items()}
        projections = {f"state.{name}_proj": size for name, size in sizes.items()}
        out = _recurrence(state, hidden)
        bias, conv_bias = state.bias, state.conv_bias
    shapes: Shapes = {}
    for name, size in projections.items():
        shapes |= _linear(name, size, hidden, bias=bias)
    for name, size in convs.items():
        shapes |= _linear(name, size, state.taps, bias=conv_bias)
    return shapes | out


def _recurrence(state: RecurrenceConfig, hidden: int) -> Shapes:
    """All but q, k and v."""
    shapes: Shapes = {}
    for name, size, rank in (
        ("gate", state.inner, state.gate_rank),
        ("decay", state.decay_size, state.decay_rank),
    ):
        if rank:
            shapes |= _linear(f"state.{name}_a_proj", rank, hidden)
            shapes |= _linear(f"state.{name}_b_proj", size, rank)
        else:
            shapes |= _linear(f"state.{name}_proj", size, hidden, bias=state.bias)
    if state.rule == "delta":
        shapes |= _linear("state.beta_proj", state.heads, hidden, bias=state.bias)
    shapes |= {"state.a_log": (state.heads,), "state.decay_bias": (state.decay_size,)}
    if state.skip:
        shapes["state.skip"] = (state.heads,)
    shapes |= _norm("state.norm", state.norm, state.value_dim if state.norm_shared else state.inner)
    return shapes | _linear("state.out_proj", hidden, state.inner, bias=state.out_bias)


def _mlp(name: str, mlp: MlpConfig | None, hidden: int) -> Shapes:
    if mlp is None:
        return {}
    return {
        **(_linear(f"{name}.gate_proj", mlp.inner, hidden, bias=mlp.bias) if mlp.gated else {}),
        **_linear(f"{name}.up_proj", mlp.inner, hidden, bias=mlp.bias),
        **_linear(f"{name}.down_proj", hidden, mlp.inner, bias=mlp.bias),
    }


def _experts(experts: ExpertsConfig | None, hidden: int) -> Shapes:
    if experts is None:
        return {}
    router = experts.router
    shapes = _linear("mlp.router", experts.count, hidden, bias=router.bias)
    for wanted, name, size in (
        (router.correction, "correction", experts.count),
        (router.norm is not None, "scale", hidden),
        (router.expert_scale, "expert_scale", experts.count),
    ):
        if wanted:
            shapes[f"mlp.router.{name}"] = (size,)
    for number in range(experts.count):
        shapes |= _mlp(f"mlp.experts.{number}", experts.mlp, experts.width(hidden))
    if experts.latent:
        shapes |= _linear("mlp.latent_in_proj", experts.latent, hidden)
        shapes |= _linear("mlp.latent_out_proj", hidden, experts.latent)
    shapes |= _mlp("mlp.shared_experts", experts.shared, hidden)
    if experts.shared_gate:
        shapes |= _linear("mlp.shared_expert_gate", 1, hidden)
    return {
        **shapes,
        **_norm("mlp.experts_norm", experts.norm, hidden),
        **_norm("mlp.dense_out_norm", experts.dense_out_norm, hidden),
        **_norm("mlp.experts_out_norm", experts.out_norm, hidden),
    }


def _side(side: SideConfig | None, hidden: int) -> Shapes:
    if side is None:
        return {}
    return {
        **_linear("per_layer_input_gate", side.values, hidden),
        **_linear("per_layer_projection", hidden, side.values),
        **_norm("post_per_layer_input_norm", side.norm, hidden),
    }


def _laurel(laurel: LaurelConfig | None, hidden: int) -> Shapes:
    if laurel is None:
        return {}
    return {
        **_linear("laurel.linear_left", laurel.rank, hidden),
        **_linear("laurel.linear_right", hidden, laurel.rank),
        **_norm("laurel.post_laurel_norm", laurel.norm, hidden),
    }


def _streams(streams: StreamsConfig | None, hidden: int) -> Shapes:
    if streams is None:
        return {}
    scale: Shapes = {"altup.correct_output_scale": (hidden,)} if streams.scaled else {}
    return {
        **_linear("altup.modality_router", streams.count, hidden),
        **_norm("altup.router_norm", streams.norm, hidden),
        **_linear("altup.prediction_coefs", streams.count**2, streams.count),
        **_linear("altup.correction_coefs", streams.count, streams.count),
        **scale,
    }


def client_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of embedding, final norm and, where it is not tied to the embedding, head; and of what
    makes the values beside the residual."""
    shapes: Shapes = {
        EMBEDDING: (config.vocab_size, config.hidden_size),
        **_norm(FINAL_NORM.removesuffix(".weight"), config.final_norm, config.hidden_size),
    }
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    if config.head_bias:
        shapes[HEAD_BIAS] = (config.vocab_size,)
    if (sideband := config.sideband) is not None:
        beside = config.n_blocks * sideband.values
        shapes[SIDE_EMBEDDING] = (sideband.vocab_size, beside)
        shapes |= _linear(SIDE_PROJECTION, beside, config.hidden_size)
        shapes |= _norm(SIDE_NORM, sideband.norm, sideband.values)
    for number in range(config.streams - 1):
        for name in (SPREAD, MERGE):
            shapes |= _linear(name.format(number), config.hidden_size, config.hidden_size)
    return shapes


def for_each_kind(
    config: ModelConfig, compute: Callable[[int], T], variant: Callable[[int], object] = lambda block: None
) -> list[T]:
    """``compute`` of the number of each block; once for those that have the same settings, as most blocks
    have, and the same ``variant``: a model of experts may have a hundred thousand tensors."""
    known: dict[tuple[int, object], T] = {}
    found = []
    for block, settings in enumerate(config.blocks):
        kind = (id(settings), variant(block))
        if kind not in known:
            known[kind] = compute(block)
        found.append(known[kind])
    return found


def model_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    shapes = client_tensors(config)
    own = for_each_kind(config, lambda block: _own_tensors(config.blocks[block], config.hidden_size))
    for block, tensors in enumerate(own):
        shapes |= _in_block(block, tensors)
    return shapes


def block_names(config: ModelConfig, block: int) -> list[str]:
    """Names of one block's tensors, of a model that transformers computes, too."""
    return list(config.foreign.blocks[block] if config.foreign else block_tensors(config, block))


def needed_tensors(config: ModelConfig, blocks: Span | None, client: bool) -> list[str]:
    """The tensors that a node of ``blocks``, or a client, reads; all of them if neither is named."""
    if blocks is None and not client:
        if config.foreign is None:
            return list(model_tensors(config))
        blocks, client = Span(0, config.n_blocks), True
    names: list[str] = []
    if client:
        names += config.foreign.client if config.foreign else client_tensors(config)
    for block in range(blocks.start, blocks.end) if blocks else ():
        names += block_names(config, block)
    return names


def main_qtype(manifest: Mapping[str, TensorInfo]) -> str:
    """The type that most of the model's bytes have."""
    totals: dict[str, int] = {}
    for info in manifest.values():
        totals[info.qtype] = totals.get(info.qtype, 0) + info.nbytes
    return max(totals, key=lambda qtype: (totals[qtype], qtype), default="F32")
