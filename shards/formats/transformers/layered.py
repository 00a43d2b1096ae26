"""transformers' own model of a configuration, of which some layers compute and the others are passed by.

The model's own ``forward`` makes masks, rotations and whatever else goes into its layers, so that a part of
them computes what the whole model would. Hidden states are put in before the first layer that computes and
taken out behind the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.utils import logging

from ....swarm.errors import UnsupportedModelError

Layer = Callable[..., Any]
_MAX_MODULES = 1 << 13
"""They take a second or two. A model of 80 layers has some 2,000; a layer's experts are one module."""

_MOST_TEXT = 300
"""Characters of what transformers' classes say that are passed on."""


class _Out(Exception):  # noqa: N818  it carries a result through code that is not ours
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@contextmanager
def _few_modules() -> Iterator[None]:
    """Inside, this thread makes at most ``_MAX_MODULES`` modules: UnsupportedModelError for more."""
    maker, count = get_ident(), 0

    def made(*_: Any) -> None:
        nonlocal count
        count += get_ident() == maker
        if count > _MAX_MODULES:
            raise UnsupportedModelError(
                f"its configuration asks transformers for more than {_MAX_MODULES} modules",
                hint="The numbers of layers and of experts in config.json may be wrong.",
            )

    hook = register_module_module_registration_hook(made)
    try:
        yield
    finally:
        hook.remove()


class KeysAndValues(Cache):
    """A cache of keys and values alone: UnsupportedModelError for a block that asks it for a state."""

    def __init__(self, name: str, layers: list[Any]) -> None:
        """``name``: of the model, for people."""
        super().__init__(layers=layers)
        self._name = name

    def get_conv_state(self, layer_idx: int, *_: Any, **__: Any) -> Any:
        raise UnsupportedModelError(
            f"block {layer_idx} of {self._name} keeps a state besides keys and values",
            hint="Models with such blocks cannot be cut between machines where transformers computes them.",
        )

    get_recurrent_state = get_conv_state

    def update_conv_state(self, states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        return self.get_conv_state(layer_idx)

    update_recurrent_state = update_conv_state


class LayeredModel:
    """``model``: transformers' ``…ForCausalLM``, all of it on torch's device "meta", without memory, until
    weights are set. ``layers``: its blocks, ``path``: their list's name."""

    def __init__(self, document: str, dtype: torch.dtype = torch.float32) -> None:
        """``document``: config.json. ``dtype``: of weights and activations. UnsupportedModelError where
        transformers can make no model of it."""
        values = json.loads(document)
        try:
            config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
            with quiet(), torch.device("meta"), initialization.no_tie_weights(), _few_modules():
                self.model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        except UnsupportedModelError:
            raise
        except Exception as error:  # noqa: BLE001  whatever its classes say of values that we did not choose
            raise unusable(error) from None
        self.model.eval()
        self.config = config
        self.path, self.layers = self._find_layers(config.num_hidden_layers)
        self.name = type(self.model).__name__
        self._gives_tuples = False
        self._around: Callable[..., Any] | None = None
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._layer, number, layer.forward)

    def _find_layers(self, count: int) -> tuple[str, nn.ModuleList]:
        found = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ]
        found = [each for each in found if not any(each[0].startswith(f"{name}.") for name, _ in found)]
        if len(found) != 1:
            raise UnsupportedModelError(
                f"transformers' {type(self.model).__name__} has {len(found)} lists of {count} layers, not one"
            )
        return found[0]

    def _layer(self, number: int, forward: Layer, *args: Any, **kwargs: Any) -> Any:
        if self._around is None:
            return forward(*args, **kwargs)
        if not args:
            args = (kwargs.pop("hidden_states"),)
        return self._around(number, forward, *args, **kwargs)

    def hollow_out(self) -> None:
        """Let modules outside the layers that have no weights give zeros: what they compute is not used, the
        hidden states that count are put in behind them."""
        for name, module in self.model.named_modules():
            inside = name == self.path or name.startswith(f"{self.path}.")
            if not inside and any(each.is_meta for each in module.parameters(recurse=False)):
                module.forward = partial(_zeros, module.forward)

    def find_form(self, hidden: Tensor) -> None:
        """Find out whether layers give hidden states, or tuples that begin with them, by trying both on
        ``hidden`` (T, hidden)."""
        for self._gives_tuples in (False, True):
            try:
                if self._behind(self.model.base_model, hidden).last_hidden_state.shape == (1, *hidden.shape):
                    return
            except (RuntimeError, IndexError, ValueError, AttributeError):
                continue
        raise UnsupportedModelError(f"{self.name} gives no hidden states behind its layers")

    def _run(self, around: Callable[..., Any], model: Any, **inputs: Any) -> Any:
        self._around = around
        try:
            return model(**inputs)
        finally:
            self._around = None

    def visit(self, around: Callable[..., Any], x: Tensor, cache: Cache) -> tuple[str, ...]:
        """Call the model on ``x`` (1, T, hidden) as embedded tokens, with ``around(number, forward, hidden,
        *args, **kwargs)`` in place of each layer's ``forward``. The names of the modules that work on ``x``
        before the first layer, and have weights: of tables of positions, norms."""
        front: list[str] = []
        entered = False

        def enter(*args: Any, **kwargs: Any) -> Any:
            nonlocal entered
            entered = True
            return around(*args, **kwargs)

        def note(name: str, *_: Any) -> None:
            if not entered:
                front.append(name)

        base = self.model.base_model
        hooks = [
            module.register_forward_pre_hook(partial(note, name))
            for name, module in base.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        try:
            self._run(enter, base, inputs_embeds=x, past_key_values=cache, use_cache=True)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(front)

    def through(self, x: Tensor, cache: Cache, first: int, end: int) -> Tensor:
        """``x`` (1, T, hidden) through layers ``first`` to ``end`` - 1: hidden states or, before layer 0,
        embedded tokens, to which the model itself adds what it adds."""
        held = x

        def around(number: int, forward: Layer, entered: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal held
            if number >= first:
                out = forward(held if number else entered, *args, **kwargs)
                held = out[0] if isinstance(out, tuple) else out
            if number == end - 1:
                raise _Out(held)
            return x

        try:
            self._run(around, self.model.base_model, inputs_embeds=x, past_key_values=cache, use_cache=True)
        except _Out as out:
            return out.hidden
        raise UnsupportedModelError(f"{self.name} does not run its layers one by one")

    def embedded(self, ids: Tensor) -> Tensor:
        """Token ids (T) → (T, hidden), without what depends on positions."""
        rows: Tensor = self.model.get_input_embeddings()(ids)
        return rows

    def normed(self, hidden: Tensor) -> Tensor:
        """What leaves the last layer, (T, hidden), through the model's own norm."""
        return self._behind(self.model.base_model, hidden).last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """What leaves the last layer, (T, hidden) → (T, vocab), by the model's own norm and head."""
        return self._behind(self.model, hidden).logits[0]

    def _behind(self, model: Any, hidden: Tensor) -> Any:
        """What ``model`` gives where ``hidden`` leaves its last layer."""
        given = (hidden[None],) if self._gives_tuples else hidden[None]
        return self._run(lambda *_, **__: given, model, inputs_embeds=hidden[None], use_cache=False)


def _zeros(forward: Layer, *args: Any, **kwargs: Any) -> Tensor:
    """As ``forward`` gives, of zeros."""
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]

    def bare(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    out = forward(*map(bare, args), **{key: bare(value) for key, value in kwargs.items()})
    return torch.zeros(out.shape, dtype=out.dtype, device=given[0].device)


def unusable(error: Exception) -> UnsupportedModelError:
    """For what transformers' classes raise."""
    text = " ".join(str(error).split())[:_MOST_TEXT] or type(error).__name__
    return UnsupportedModelError(f"transformers cannot run a model of this config.json: {text}")


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing meanwhile of packages that would make it faster, nor else."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
