"""Finds out what a causal model can do by running it on a few tokens, since architectures do not declare it.

`is_capable` asks one of the probes below. It runs them on a tiny float32 model of the same architecture, so that
rounding cannot decide. Each function takes a `CausalBackbone`. Knows nothing of prompts or files.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ptuning.data import added, positions
from ptuning.model.architecture import miniature_of
from ptuning.model.kernels import (
    CutWeight,
    JointPrefix,
    LastLayerCut,
    SomeTokens,
    attends_by_name,
    fast_kernels,
    head_weight,
    token_by_token_weights,
)
from ptuning.model.memory import is_out_of_memory

_TOLERANCE = 1e-4  # relative to the largest logit: more than rounding causes in float32 on CPUs
_TOLERANCE_OF_OTHERS = 1e-2  # in other precisions and on other devices, where models are run that have no tiny one
_STEPS = (1e-2, 1e-3)  # small changes of embeddings, relative to their spread
_TOLERANCE_OF_SLOPES = 0.1  # relative to the slope: more than a small change differs from a derivative
_GAP = 8  # columns of padding

_log = logging.getLogger(__name__)
_LOCK = threading.RLock()
_KNOWN: dict[tuple[Any, Callable[[Any], bool]], bool] = {}  # of tiny models


def is_capable(backbone: Any, probe: Callable[[Any], bool]) -> bool:
    """What a probe finds out about the architecture of a backbone's model.

    It is found out once for all models of the architecture in this process. Where no tiny model can stand for the
    backbone's model (see `miniature_of`), that model itself is run, and large rounding errors may make it seem
    incapable.
    """
    small = miniature_of(backbone.model)
    if small is None:
        return _logged(backbone, probe, probe(backbone), "the model itself")
    with _LOCK, torch.autocast("cpu", enabled=False):
        if (small, probe) not in _KNOWN:
            answer = probe(type(backbone)(small, backbone.tokenizer, backbone.name))
            _KNOWN[small, probe] = _logged(backbone, probe, answer, "a tiny model of its architecture")
        return _KNOWN[small, probe]


def _logged(backbone: Any, probe: Callable[[Any], bool], answer: bool, run: str) -> bool:
    _log.info("%s, %s: %s, found out by running %s", type(backbone.model).__name__, probe.__name__, answer, run)
    return answer


@torch.no_grad()
def is_causal(backbone: Any) -> bool:
    """Whether a token's logits do not depend on later tokens; an encoder such as BERT would read the answer."""
    ids_BT = torch.tensor([[1, 2], [1, 3]], device=backbone.device)
    positions_BT = torch.tensor([[0, 1], [0, 1]], device=backbone.device)
    logits_BV = backbone.run(inputs_embeds=backbone.embed(ids_BT), position_ids=positions_BT).logits[:, 0]
    return _same(backbone, logits_BV[0], logits_BV[1])


@torch.no_grad()
def reads_embeddings(backbone: Any) -> bool:
    """Whether embeddings are all that the layers read; those of Gemma 3n and 4 read the tokens' ids too."""
    ids_13 = torch.tensor([[1, 2, 3]], device=backbone.device)
    options = {"position_ids": torch.arange(3, device=backbone.device)[None], "use_cache": False}
    embeddings_13H = backbone.embed(ids_13)
    of_embeddings_V = backbone.run(inputs_embeds=embeddings_13H, **options).logits[0, -1]
    try:
        backbone.run(inputs_embeds=embeddings_13H + embeddings_13H.flip(1), **options)  # the embeddings of no token
    except (ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return _same(backbone, backbone.run(input_ids=ids_13, **options).logits[0, -1], of_embeddings_V)


@torch.enable_grad()
def passes_gradients(backbone: Any) -> bool:
    """Whether the gradient at the embeddings is what small changes of them do to the logits.

    A small change may send a token to another expert, so several are tried. In less than float32 rounding hides what
    they do, and the answer is yes.
    """
    if backbone.dtype != torch.float32:
        return True
    ids_13 = torch.tensor([[1, 2, 3]], device=backbone.device)
    start_13H = backbone.embed(ids_13).detach().float()
    chance = torch.Generator().manual_seed(0)
    change_13H = torch.randn(start_13H.shape, generator=chance).to(start_13H) * start_13H.std()
    options = {"position_ids": torch.arange(3, device=backbone.device)[None], "use_cache": False}

    def value(embeddings_13H: Tensor) -> Tensor:
        logits_V = backbone.run(inputs_embeds=embeddings_13H, **options).logits[0, -1].float()
        return logits_V @ torch.arange(len(logits_V), device=logits_V.device).sin()

    leaf_13H = start_13H.clone().requires_grad_()
    try:
        (gradient_13H,) = torch.autograd.grad(value(leaf_13H), leaf_13H)
    except RuntimeError as error:  # a layer changed what the backward pass needs
        if is_out_of_memory(error):
            raise
        return False
    slope = float((gradient_13H * change_13H).sum())
    scale = float(gradient_13H.norm() * change_13H.norm()) / change_13H.numel() ** 0.5
    with torch.no_grad():
        for step in _STEPS:
            up, down = value(start_13H + step * change_13H), value(start_13H - step * change_13H)
            expected = float((up - down) / (2 * step))
            if abs(expected - slope) <= _TOLERANCE_OF_SLOPES * max(scale, abs(expected)):
                return True
    return False


@torch.no_grad()
def ignores_left_padding(backbone: Any) -> bool:
    """Whether left padding changes nothing, so rows of different lengths can be generated together.

    RWKV reads padding as text. In transformers 5.23, RWKV and MiniMax also mix up the states of the rows of a batch.
    """
    ids_BT = torch.tensor([[3, 1, 2], [3, 1, 2]], device=backbone.device)
    mask_BT = torch.tensor([[0, 1, 1], [1, 1, 1]], device=backbone.device)
    together, alone = _steps(backbone, ids_BT, mask_BT), _steps(backbone, ids_BT[:1, 1:], mask_BT[:1, 1:])
    return all(_same(backbone, both_BV[0], one_BV[0]) for both_BV, one_BV in zip(together, alone, strict=True))


@torch.no_grad()
def ignores_padding_gaps(backbone: Any) -> bool:
    """Whether padding between two tokens of a row changes nothing; MPT, for one, counts it in the distance."""
    ids_1T = torch.tensor([[1, *[3] * _GAP, 2, 4]], device=backbone.device)
    mask_1T = torch.tensor([[1, *[0] * _GAP, 1, 1]], device=backbone.device)
    gap_V, plain_V = (
        backbone.run(
            inputs_embeds=backbone.embed(ids_1T[:, chosen]),
            attention_mask=mask_1T[:, chosen],
            position_ids=positions(mask_1T[:, chosen]),
            use_cache=False,
        ).logits[0, -1]
        for chosen in (slice(None), mask_1T[0] > 0)
    )
    return _same(backbone, gap_V, plain_V)


@torch.no_grad()
def supports_block_masks(backbone: Any) -> bool:
    """Whether the model obeys a mask over pairs of tokens; tested with two rows in one line after a kept token."""
    ids_15 = torch.tensor([[1, 2, 3, 4, 5]], device=backbone.device)
    sees_55 = torch.ones(5, 5, dtype=torch.bool, device=backbone.device).tril()
    sees_55[3:, 1:3] = False  # tokens 1 and 2 are one row, 3 and 4 another
    masks_1145 = added(sees_55[None, None, 1:], backbone.dtype)
    positions_15 = torch.tensor([[0, 1, 2, 1, 2]], device=backbone.device)
    cache = DynamicCache()

    def run(columns: slice, **options: Any) -> Tensor:
        inputs_embeds = backbone.embed(ids_15[:, columns])
        return backbone.run(inputs_embeds=inputs_embeds, position_ids=positions_15[:, columns], **options).logits[0]

    run(slice(0, 1), past_key_values=cache, use_cache=True)
    try:
        line_4V = run(slice(1, 5), past_key_values=cache, use_cache=True, attention_mask=masks_1145)
    except (ValueError, RuntimeError, IndexError):  # some take only one mask per row, as Falcon with ALiBi
        return False
    alone_V = backbone.run(
        inputs_embeds=backbone.embed(ids_15[:, [0, 3, 4]]), position_ids=positions_15[:, :3], use_cache=False
    ).logits[0, -1]
    return _same(backbone, line_4V[-1], alone_V)


@torch.no_grad()
def supports_joint_prefix(backbone: Any) -> bool:
    """Whether all lines can see a prefix in the first line: the model's attention must call torch's function."""
    ids_23 = torch.tensor([[1, 2, 3], [4, 5, 0]], device=backbone.device)  # the prefix and a row; another row
    positions_23 = torch.tensor([[0, 1, 2], [1, 2, 0]], device=backbone.device)
    own_233 = torch.ones(2, 3, 3, dtype=torch.bool, device=backbone.device).tril()
    own_233[0, 1:, 0] = False  # the prefix is seen through its copy before the line
    prefix_231 = torch.tensor([[[False], [True], [True]], [[True]] * 3], device=backbone.device)
    masks_2134 = added(torch.cat([prefix_231, own_233], dim=2)[:, None], backbone.dtype)
    inputs = {"inputs_embeds": backbone.embed(ids_23), "position_ids": positions_23, "use_cache": False}
    ids_23[1] = torch.tensor([1, 4, 5])  # the other row behind the prefix, as the first one is
    alone_2V = backbone.run(
        inputs_embeds=backbone.embed(ids_23), position_ids=positions_23[:1].expand(2, -1), use_cache=False
    ).logits[:, -1]
    for has_linear in (False, True):  # as on a GPU, as on a CPU
        kernels = fast_kernels(JointPrefix(1), attends_by_name=attends_by_name(backbone.model), has_linear=has_linear)
        try:
            with kernels:
                lines_23V = backbone.run(**inputs, attention_mask=masks_2134).logits
        except (ValueError, RuntimeError, IndexError):
            return False
        if not _same(backbone, torch.stack([lines_23V[0, 2], lines_23V[1, 1]]), alone_2V):
            return False
    return True


@torch.no_grad()
def last_layer_can_be_cut(backbone: Any, weights: Sequence[CutWeight]) -> bool:
    """Whether a token's logits stay the same if the last layer's products leave the other tokens out.

    They change in models that run a layer more than once in a pass, or that mix tokens between the products.
    """
    ids_24 = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], device=backbone.device)
    tokens = SomeTokens((2, 4), torch.tensor([2, 7], device=backbone.device))  # the third and the eighth
    inputs = {"inputs_embeds": backbone.embed(ids_24), "use_cache": False}
    inputs["position_ids"] = torch.arange(4, device=backbone.device).expand(2, 4)
    whole_2V = backbone.run(**inputs).logits.flatten(0, 1)[tokens.scored_N]
    try:
        with fast_kernels(cut=LastLayerCut(weights, tokens)):
            cut_2V = backbone.run(**inputs).logits.flatten(0, 1)[tokens.scored_N]
    except (ValueError, RuntimeError, IndexError):
        return False
    return _same(backbone, cut_2V, whole_2V)


def can_cut_last_layer(backbone: Any) -> bool:
    """Whether `last_layer_can_be_cut` holds for all weights that `token_by_token_weights` returns; False if none."""
    weights = token_by_token_weights(backbone.model)
    return bool(weights) and last_layer_can_be_cut(backbone, weights)


@torch.no_grad()
def can_cut_head(backbone: Any) -> bool:
    """Whether the logits of some tokens stay the same if the head multiplies no others."""
    weight = head_weight(backbone.model)
    if weight is None:
        return False
    ids_24 = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], device=backbone.device)
    tokens = SomeTokens((2, 4), torch.tensor([7, 2], device=backbone.device))  # the eighth and the third
    inputs = {"inputs_embeds": backbone.embed(ids_24), "use_cache": False}
    try:
        whole_2V = backbone.run(**inputs).logits.flatten(0, 1)[tokens.scored_N]
        with fast_kernels(cut=LastLayerCut([weight], tokens)):
            cut_12V = backbone.run(**inputs).logits
    except (ValueError, RuntimeError, IndexError):
        return False
    return cut_12V.shape == whole_2V[None].shape and _same(backbone, cut_12V[0], whole_2V)


def _steps(backbone: Any, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, ...]:
    """The logits of three greedy steps, `[B, V]` each."""
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 3, "max_length": None}
    special_ids = {"eos_token_id": None, "pad_token_id": 0}  # nothing ends, so nothing is padded
    output = {"output_logits": True, "return_dict_in_generate": True}
    inputs = {"inputs_embeds": backbone.embed(ids_BT), "input_ids": ids_BT, "attention_mask": mask_BT}
    return backbone.model.generate(**inputs, **options, **special_ids, **output).logits


def _same(backbone: Any, found_V: Tensor, right_V: Tensor) -> bool:
    """Whether logits are equal except for rounding."""
    rounds_finely = backbone.dtype == torch.float32 and backbone.device.type == "cpu"
    tolerance = _TOLERANCE if rounds_finely else _TOLERANCE_OF_OTHERS
    return bool((found_V.float() - right_V.float()).abs().max() <= tolerance * right_V.float().abs().max())
