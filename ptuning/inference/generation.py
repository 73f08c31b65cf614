"""Generates answers with transformers' own `generate`, starting from kept prefixes where possible.

Knows nothing of prompt names or tasks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ptuning.data import ApartBatch, Batch, Example
from ptuning.errors import ModelError, PromptError
from ptuning.forward import (
    KeptPrompts,
    Prompt,
    as_batch_prompt,
    can_pack,
    place,
    prefilled,
    prefixes_apart,
    require_numbers,
)
from ptuning.inference.row_text import MAX_NEW_TOKENS, WritingOptions, require_limits
from ptuning.model import Backbone, CausalBackbone

# Options that are refused.
_SEVERAL_TEXTS = {"num_return_sequences", "return_dict_in_generate"}
_INPUTS = {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids"}
_CACHES = {"use_cache", "past_key_values", "cache_params"}

# Options with which transformers creates, crops or splits its own cache.
_OWN_CACHE = ("cache_implementation", "prompt_lookup_num_tokens", "assistant_model", "prefill_chunk_size")
_ASSISTED = ("prompt_lookup_num_tokens", "assistant_model")


def writing_options(
    backbone: Backbone, max_new_tokens: int | None, stop_strings: Sequence[str], options: dict[str, Any]
) -> WritingOptions:
    """Collects the options for `write`: greedy by default, up to the model's end-of-text tokens.

    Args:
        backbone: The model; its generation configuration supplies defaults.
        max_new_tokens: The most tokens in an answer; None: as in the `generation_config` option, else 50.
        stop_strings: Texts that end an answer.
        options: Other options of transformers' `generate`; they override `generation_config`, which overrides defaults.

    Raises:
        PromptError: For an option that would not give one text per row, or that ptuning sets itself.
        ModelError: For a model that cannot generate from embeddings.
    """
    if not backbone.generates_from_embeddings:
        raise ModelError(
            f"generate with {backbone.name}: transformers lets {type(backbone.model).__name__} start from ids only",
            "a model that can start from embeddings",
            "Use classify or log_probs with it",
        )
    for refused, expected in (
        (_SEVERAL_TEXTS, "options that give one text per row"),
        (_INPUTS, "rows, from which ptuning makes the inputs"),
        (_CACHES, "options that leave the cache to ptuning"),
    ):
        if refused & set(options):
            raise PromptError(f"generate({min(refused & set(options))}=…)", expected, "Leave it out")
    config = options.get("generation_config")

    def setting(name: str) -> Any:
        """A setting from the options, else from `generation_config`, else from the model's own configuration."""
        default = getattr(backbone.model.generation_config, name, None)
        values = (options.get(name), getattr(config, name, None), default)
        return next((each for each in values if each is not None), None)

    num_new = getattr(config, "max_new_tokens", None) if max_new_tokens is None else max_new_tokens
    num_new = MAX_NEW_TOKENS if num_new is None else num_new
    require_limits(num_new, stop_strings)
    defaults: dict[str, Any] = {"pad_token_id": backbone.pad_id, "eos_token_id": backbone.end_ids, "do_sample": False}
    given = {name: each for name, each in defaults.items() if getattr(config, name, None) is None} | options
    ends: Any = given.get("eos_token_id", getattr(config, "eos_token_id", None))
    lengths = {"max_new_tokens": num_new, "max_length": None, "stop_strings": None}
    one_text = {"num_return_sequences": 1, "return_dict_in_generate": False}
    return WritingOptions(
        options={**given, **lengths, **one_text},
        ends=frozenset(ends if isinstance(ends, list | tuple) else [ends]),
        stop_strings=tuple(stop_strings or setting("stop_strings") or ()),
        num_beams=setting("num_beams") or 1,
        max_new_tokens=num_new,
        has_own_cache=any(setting(name) for name in _OWN_CACHE),
        is_assisted=any(setting(name) for name in _ASSISTED),
    )


@torch.no_grad()
def write(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    settings: WritingOptions,
    **listening: Any,
) -> Tensor:
    """Generates after each row.

    Args:
        backbone: The frozen model.
        prompt: As in `forward.label_logits`.
        examples: The rows, without answers.
        settings: How to generate.
        listening: A streamer, and more stopping criteria.

    Returns:
        The new tokens, `[B, N]`; padding follows a row's end.
    """
    batch = backbone.collate(examples, backbone.generation_padding_side).to(backbone.device)
    cache, prompt = None, as_batch_prompt(prompt)
    if isinstance(prompt, KeptPrompts) and isinstance(backbone, CausalBackbone) and prompt.shares(batch):
        apart = prefixes_apart(prompt, examples, backbone)
        if _can_start_from_prefix(backbone, apart, max(prompt.prefix_lengths), settings):
            cache, batch = _initial_cache(backbone, prompt, apart), apart
            cache.batch_repeat_interleave(settings.num_beams)
    prompts = prompt.embeddings(backbone, batch)
    return written(backbone, prompts, batch.ids_BT, batch.mask_BT, cache, settings, **listening)


def written(
    backbone: Backbone,
    prompt: Tensor,
    ids_BT: Tensor,
    mask_BT: Tensor,
    cache: Any,
    settings: WritingOptions,
    stopping_criteria: Sequence[StoppingCriteria] = (),
    **listening: Any,
) -> Tensor:
    """The new tokens after rows; a cache may hold their first columns.

    Arguments as in `write` and `Backbone.generate`.

    Raises:
        PromptError: For an option that transformers refuses.
        ModelError: For scores that are not numbers.
    """
    criteria = [*settings.options.get("stopping_criteria", ()), *stopping_criteria]
    if settings.stop_strings:
        criteria.append(_Stops(backbone, settings.stop_strings, backbone.num_columns_before(ids_BT)))
    processors = LogitsProcessorList([_FirstIsNumber(backbone), *settings.options.get("logits_processor", ())])
    options = {
        **settings.options,
        **listening,
        "stopping_criteria": StoppingCriteriaList(criteria),
        "logits_processor": processors,
    }
    kept = {} if cache is None else {"past_key_values": cache}
    try:
        return backbone.generate(place(backbone, prompt, ids_BT), ids_BT, mask_BT, **kept, **options)
    except (ValueError, TypeError) as error:  # transformers refuses an option
        raise PromptError(
            f"generate ({error})", "options that transformers' generate accepts", "Correct them"
        ) from error


class _FirstIsNumber(LogitsProcessor):
    """Looks at the scores of the first new token, and not at later ones: looking waits for the device."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._has_looked = backbone, False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._has_looked:
            self._has_looked = True
            require_numbers(self._backbone, scores)
        return scores


def _initial_cache(backbone: CausalBackbone, prompt: KeptPrompts, apart: ApartBatch) -> DynamicCache:
    """A cache with the rows' prefixes; on CPUs with everything but the rows' last tokens.

    On CPUs the padding of several rows costs more than a separate run. torch would also copy the head's weights once
    per row, to multiply them with the slice that transformers' first step takes.
    """
    if backbone.device.type == "cpu" and len(apart) > 1 and can_pack(backbone, prompt, apart):
        return prefilled(backbone, prompt, apart)
    return prompt.spread(backbone)[0]


def _can_start_from_prefix(
    backbone: CausalBackbone, apart: Batch, prefix_length: int, settings: WritingOptions
) -> bool:
    """Whether generation can start from kept prefixes, with shorter rows padded between prefix and text."""
    if settings.has_own_cache:
        return False
    if not (apart.mask_BT == 0)[:, prefix_length:].any():
        return True
    length = apart.ids_BT.shape[1] + settings.max_new_tokens
    return backbone.ignores_padding_gaps and backbone.sees_all(length)


class _Stops(StoppingCriteria):
    """Ends a row once its answer (not its question) contains a stop string."""

    def __init__(self, backbone: Backbone, stop_strings: Sequence[str], num_columns_before: int) -> None:
        self._decode, self._stop_strings = backbone.tokenizer.decode, stop_strings
        self._before = num_columns_before
        self._num_checked = 4 * max(map(len, stop_strings)) + 4  # a character may be several tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ends = [self._decode(ids, skip_special_tokens=True) for ids in self._new(input_ids)]
        found = [any(stop in end for stop in self._stop_strings) for end in ends]
        return torch.tensor(found, device=input_ids.device)

    def _new(self, input_ids: Tensor) -> list[list[int]]:
        return input_ids[:, self._before :][:, -self._num_checked :].tolist()
