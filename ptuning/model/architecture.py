"""Builds a tiny model of a given model's architecture, so that what the architecture can do is found out by running it.

The tiny model has the same class and nearly the same configuration: every kind of layer, narrow, with few tokens and
random weights, in float32 on the CPU. Neither the weights nor the precision nor the device of the given model matter.
Knows nothing of what is found out.
"""

import copy
import functools
import itertools
import json
import logging
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from ptuning.model.kernels import decoder_layers

_NUM_TOKENS = 32  # the vocabulary of a tiny model
_HEAD_DIM = 8  # the narrowest heads that are tried: rotary embeddings of a quarter of a head need two numbers
_MOST_PARAMETERS = 2**25  # half a second's work
_GATE = 0.3  # standard deviation of scales that begin at zero
_LEAST_CHANGE = 1e-2  # relative to the largest logit: how much another first token must change the last token's logits
_WIDTH = re.compile(
    r"(hidden|intermediate|head|embedding|projection|ffn)_size|(^|_)(dim|rank|width)s?$|"
    r"(^|_)d_(model|ff|inner|ssm|head|kv)$|^n_(embd|inner)$"
)
_NO_WIDTH = re.compile("kernel|state|conv_size")
_CHOICE = re.compile("(layers|layer_ids|indices|idxs)$")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_NOT_COMPUTED = ("dtype", "_name_or_path", "quantization_config", "transformers_version", "architectures")
_SWITCHES = ("_attn_implementation", "_experts_implementation")
_NO_TRAITS = ("training", "gradient_checkpointing", "name_or_path")

_DRAWING = {f"{name}_" for name in ("normal", "uniform", "kaiming_uniform", "bernoulli", "exponential", "random")}
_DRAWING |= {"normal", "rand", "randn", "randint", "randperm", "bernoulli", "multinomial"}  # functions of torch

_log = logging.getLogger(__name__)
_LOCK = threading.RLock()
_BUILT: dict[Hashable, PreTrainedModel | None] = {}


def miniature_of(model: Any) -> PreTrainedModel | None:
    """The tiny model of a model's architecture, the same one for all models of that architecture in this process.

    No weight of the model is read, and torch's random number generator is left as it is.

    Returns:
        The tiny model; None if the model does not compute what its class computes, as with hooks or adapters, or if no
        tiny model of its class runs.
    """
    if not isinstance(model, PreTrainedModel) or any(map(_is_changed, model.modules())):
        return None
    key = _key(model)
    with _LOCK:
        if key not in _BUILT:
            _BUILT[key] = _smallest(model)
        return _BUILT[key]


def _key(model: PreTrainedModel) -> Hashable:
    """What tells the architectures of two models apart."""
    content = [
        {**each.to_dict(), **dict.fromkeys(_NOT_COMPUTED), **{name: getattr(each, name, None) for name in _SWITCHES}}
        for each in _configs(model.config)
    ]
    return type(model), _traits(model, model), json.dumps(content, sort_keys=True, default=str)


def _smallest(model: PreTrainedModel) -> PreTrainedModel | None:
    """The smallest model that computes what the model computes; None if none of those tried does."""
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    plans = (
        itertools.product(_factors(model.config), (_representative_layers(model), range(num_layers)))
        if num_layers
        else ()
    )
    for factor, kept in plans:
        try:
            small = _built(type(model), _shrunk(model.config, factor, kept))
            _require_alike(small, model)
            _require_use_of_earlier_tokens(small)
        except Exception as error:  # each class has its own reasons to refuse a configuration
            _log.debug("no %s of %d layers, 1/%d as wide: %s", type(model).__name__, len(kept), factor, error)
        else:
            return small
    return None


def _number(config: PreTrainedConfig, name: str) -> int | None:
    """An integer in a configuration by its standard name; None if there is none."""
    found = vars(config).get(config.attribute_map.get(name, name))
    return found if isinstance(found, int) else None


def _representative_layers(model: PreTrainedModel) -> list[int]:
    """The last layer of each kind, in order; two layers where all are of one kind."""
    layers, config = decoder_layers(model), model.config.get_text_config()
    num_layers = config.num_hidden_layers
    described = [each for name, each in vars(config).items() if _is_by_layer(name, each, num_layers)]
    last: dict[Hashable, int] = {}
    for i in range(num_layers):
        traits = None if layers is None else _traits(layers[i], model)
        last[traits, repr([each[i] for each in described])] = i
    return sorted({*last.values(), *range(max(0, num_layers - 2), num_layers)} if len(last) == 1 else last.values())


def _factors(config: PreTrainedConfig) -> list[int]:
    """By how much the widths may be divided, the narrowest first."""
    text = config.get_text_config()
    num_heads, width = _number(text, "num_attention_heads"), _number(text, "hidden_size")
    shared = width // num_heads if num_heads and width else 8 * _HEAD_DIM
    head_dim = _number(text, "head_dim") or _number(text, "qk_rope_head_dim") or shared
    most = max(1, head_dim // _HEAD_DIM)
    return sorted({n for n in (most, 8, 4, 2, 1) if n <= most and head_dim % n == 0}, reverse=True)


def _shrunk(config: PreTrainedConfig, factor: int, kept: Sequence[int]) -> PreTrainedConfig:
    """A configuration with some layers only, and all widths divided by the same number, so that they still fit."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    _keep_layers(text, kept)
    for each in _configs(config):
        vars(each).pop("quantization_config", None)
        for name, value in list(vars(each).items()):
            setattr(each, name, _shrunk_value(name, value, factor))
        if each is not text and getattr(each, "num_hidden_layers", None):
            each.num_hidden_layers = 1
        _take_few_experts(each)
    return config


def _keep_layers(config: PreTrainedConfig, kept: Sequence[int]) -> None:
    num_layers = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if _is_by_layer(name, value, num_layers):
            setattr(config, name, [value[i] for i in kept])
        elif _is_choice(name, value, num_layers):
            setattr(config, name, [place for place, i in enumerate(kept) if i in value])
    if len(kept) < num_layers and getattr(config, "first_k_dense_replace", 0):
        config.first_k_dense_replace = 1  # DeepSeek's number of layers before those with experts
    if config.num_hidden_layers != len(kept):  # some count their lists
        config.num_hidden_layers = len(kept)


def _is_by_layer(name: str, value: Any, num_layers: int) -> bool:
    """Whether a list has an entry for each layer."""
    return isinstance(value, list | tuple) and len(value) == num_layers and not _is_choice(name, value, num_layers)


def _is_choice(name: str, value: Any, num_layers: int) -> bool:
    """Whether a list names some layers by their numbers."""
    is_listed = isinstance(value, list | tuple) and bool(_CHOICE.search(name))
    return is_listed and all(type(i) is int and i < num_layers for i in value) and sorted(set(value)) == list(value)


def _shrunk_value(name: str, value: Any, factor: int) -> Any:
    if isinstance(value, dict) and not isinstance(value, PreTrainedConfig):
        return {key: _shrunk_value(str(key), each, factor) for key, each in value.items()}
    if name.startswith("vocab_size"):
        return _NUM_TOKENS
    if name.endswith(("token_id", "token_index")) and isinstance(value, int):
        return min(value, _NUM_TOKENS - 1)
    if name in ("short_factor", "long_factor"):  # one for each pair of rotary numbers
        return value[::factor]
    is_width = name == "mrope_section" or (_WIDTH.search(name) and not _NO_WIDTH.search(name))
    if is_width and isinstance(value, list | tuple):
        return [_shrunk_value(name, each, factor) for each in value]
    if not is_width or type(value) is not int or value <= 4 or factor == 1:
        return value
    return 4 * -(-value // (4 * factor))  # some products of experts take multiples of 4 only


def _take_few_experts(config: PreTrainedConfig) -> None:
    """Leaves twice as many experts as a token takes, and two in each group of experts."""
    num_groups, num_taken = getattr(config, "n_group", None) or 1, getattr(config, "num_experts_per_tok", None) or 2
    for name in _EXPERTS:
        num_experts = vars(config).get(name)
        if isinstance(num_experts, int):
            setattr(config, name, min(num_experts, num_groups * max(2, -(-2 * num_taken // num_groups))))


def _configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and all those in it."""
    yield config
    for each in vars(config).values():
        if isinstance(each, PreTrainedConfig):
            yield from _configs(each)


def _built(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights; raises `ValueError` if it would be large."""
    with torch.device("meta"):
        num_parameters = sum(
            each.numel() for each in kind._from_config(copy.deepcopy(config), dtype=torch.float32).parameters()
        )
    if num_parameters > _MOST_PARAMETERS:
        raise ValueError(f"{num_parameters} parameters, at most {_MOST_PARAMETERS}")
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"), _PrivateRandomness(generator):
        model = kind._from_config(config, dtype=torch.float32).float().eval().requires_grad_(False)
    looked_up = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim <= 1 and not name.endswith("bias")
        if is_scale and not parameter.any():  # it would let nothing through
            parameter.normal_(std=_GATE, generator=generator)
        elif parameter.ndim > 1:
            std = 1.0 if id(parameter) in looked_up else parameter.shape[-1] ** -0.5
            parameter.normal_(std=std, generator=generator)
    return model


class _PrivateRandomness(TorchFunctionMode):
    """A context in which this thread draws random numbers from a generator of its own."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = {"generator": self._generator} if getattr(func, "__name__", "") in _DRAWING else {}
        return func(*args, **{**(kwargs or {}), **own})


def _require_alike(small: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raises `ValueError` unless the tiny model has all kinds of modules and layers, and the last layer's kind last."""
    missing = _traits(model, model) - _traits(small, model)
    if missing:
        raise ValueError(f"it lacks {sorted(map(str, missing))[0]}")
    theirs, ours = ([_traits(each, model) for each in decoder_layers(one) or []] for one in (model, small))
    if not set(theirs) <= set(ours) or theirs[-1:] != ours[-1:]:
        raise ValueError("its layers differ")


def _traits(part: nn.Module, model: PreTrainedModel) -> frozenset[Hashable]:
    """What the modules of a part of a model do: their classes' functions, their switches and their names of modes."""
    is_quantized = getattr(model.config, "quantization_config", None) is not None
    found: set[Hashable] = set()
    for module in part.modules():
        if is_quantized and isinstance(module, nn.Linear):
            found.add(nn.Linear.forward)
            continue
        found.add(type(module).forward)
        switches = [(name, each) for name, each in list(vars(module).items()) if type(each) in (bool, str)]
        found |= {(type(module), *each) for each in switches if each[0][0] != "_" and each[0] not in _NO_TRAITS}
    return frozenset(found)


def _is_changed(module: nn.Module) -> bool:
    """Whether a module does not compute what its class does; it may be checkpointed, watched, or moved when it runs."""
    own = vars(module)
    is_moved = isinstance(own.get("_hf_hook"), AlignDevicesHook)
    forward: Any = own["_old_forward"] if is_moved else own.get("forward", type(module).forward)
    while isinstance(forward, functools.partial) and forward.func is checkpoint:
        forward = forward.args[0]
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    is_hooked = any(not getattr(each, "__module__", "").startswith("transformers.") for each in hooks)
    return is_hooked or getattr(forward, "__func__", forward) is not type(module).forward


@torch.no_grad()
def _require_use_of_earlier_tokens(model: PreTrainedModel) -> None:
    """Raises `ValueError` unless a token clearly changes the logits two tokens on."""
    ids_23 = torch.tensor([[1, 2, 3], [4, 2, 3]])
    one_V, other_V = model(inputs_embeds=model.get_input_embeddings()(ids_23), use_cache=False).logits[:, -1]
    if not (one_V - other_V).abs().max() > _LEAST_CHANGE * one_V.abs().max():
        raise ValueError("its logits do not depend on earlier tokens")
