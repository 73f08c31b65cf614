"""Writes answers: transformers' own `generate` over prompted rows, from kept prefixes where they can be; streaming.

Knows nothing of prompts' names or of tasks.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ptuning.backbone import Backbone, CausalBackbone
from ptuning.data import IGNORED, Batch, Example, padded
from ptuning.errors import PromptError
from ptuning.forward import Prompt, can_share, embeddings_of
from ptuning.placement import place
from ptuning.prefix import RowPrompts

_SEVERAL_TEXTS = {"num_return_sequences", "return_dict_in_generate", "inputs", "input_ids", "inputs_embeds"}
_OWN_CACHE = {"use_cache", "past_key_values", "cache_params"}
# Options with which transformers makes or crops a cache of its own.
_NEEDS_WHOLE_ROWS = ("cache_implementation", "prompt_lookup_num_tokens", "assistant_model", "prefill_chunk_size")


class Piece(NamedTuple):
    """Some text of a row's answer, as it comes."""

    row: int
    """The row it belongs to, counted from 0."""
    text: str
    """What follows the row's pieces so far."""


def settings_of(
    backbone: Backbone, max_new_tokens: int, stop_strings: Sequence[str], options: dict[str, Any]
) -> dict[str, Any]:
    """What is given to transformers' `generate`: greedy by default, ended by the model's end-of-text tokens.

    Raises:
        PromptError: For an option that would not give one text a row, or that would take the cache out of our hands.
    """
    for refused, expected in (
        (_SEVERAL_TEXTS, "options that give one text a row, of a token or more"),
        (_OWN_CACHE, "options that leave the cache to ptuning"),
    ):
        if refused & set(options):
            raise PromptError(f"generate({min(refused & set(options))}=…)", expected, "Leave it out")
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens={max_new_tokens}", "a token or more", "Raise it")
    if isinstance(stop_strings, str) or not all(stop_strings):
        raise PromptError(f"stop_strings={stop_strings!r}", "a list of texts, none of them empty", "Correct it")
    ends = {"pad_token_id": backbone.pad_id, "eos_token_id": backbone.end_ids}
    stops = {"stop_strings": list(stop_strings), "tokenizer": backbone.tokenizer} if stop_strings else {}
    return {"do_sample": False, "max_length": None, "max_new_tokens": max_new_tokens, **ends, **stops, **options}


@torch.no_grad()
def write(backbone: Backbone, prompt: Prompt, examples: Sequence[Example], settings: dict[str, Any]) -> Tensor:
    """Writes after each row.

    Args:
        backbone: The frozen model.
        prompt: As in `forward.label_logits`.
        examples: The rows, without answers.
        settings: As `settings_of` gives them.

    Returns:
        The new tokens, `[B, N]`; behind a row's end they are padding.
    """
    batch = backbone.collate(examples, backbone.side_to_write).to(backbone.device)
    cache = None
    if isinstance(prompt, RowPrompts) and isinstance(backbone, CausalBackbone) and can_share(backbone, prompt, batch):
        apart = _prefixes_apart(prompt, examples, backbone)
        if _may_continue(backbone, apart, max(prompt.num_run), settings):
            num_beams = _setting(backbone, settings, "num_beams") or 1
            choice = tuple(k for k in prompt.choice for _ in range(num_beams))
            cache, _ = dataclasses.replace(prompt, choice=choice).spread(backbone)
            batch = apart
    embeddings_BTH = place(backbone, embeddings_of(prompt, backbone, batch), batch.ids_BT)
    kept = {} if cache is None else {"past_key_values": cache}
    return backbone.generate(embeddings_BTH, batch.ids_BT, batch.mask_BT, **kept, **settings)


def _prefixes_apart(prompt: RowPrompts, examples: Sequence[Example], backbone: Backbone) -> Batch:
    """The rows with their prefixes, which have been run, in columns of their own, and both parts padded in front."""
    rows = [(each.ids[:num], each.ids[num:]) for each, num in zip(examples, prompt.num_run, strict=True)]
    parts = [padded(part, backbone.pad_id, "left") for part in zip(*rows, strict=True)]
    ids_BT, mask_BT = (torch.cat(each, dim=1).to(backbone.device) for each in zip(*parts, strict=True))
    return Batch(ids_BT, mask_BT, torch.full_like(ids_BT, IGNORED), (), ())


def _may_continue(backbone: CausalBackbone, apart: Batch, num_run: int, settings: dict[str, Any]) -> bool:
    """Whether generation may go on from kept prefixes: padding behind a prefix must not push it out of a window."""
    if any(_setting(backbone, settings, name) for name in _NEEDS_WHOLE_ROWS):
        return False
    length = apart.ids_BT.shape[1] + settings["max_new_tokens"]
    has_gaps = bool((apart.mask_BT == 0)[:, num_run:].any())
    return backbone.window is None or not has_gaps or length <= backbone.window


def _setting(backbone: Backbone, settings: dict[str, Any], name: str) -> Any:
    """An option as transformers will see it: as given, else as in the generation configuration."""
    config = settings.get("generation_config", backbone.model.generation_config)
    return settings.get(name, getattr(config, name, None))


class RowText:
    """A row's answer as it grows, up to its end: the first end-of-text token or stop string.

    Args:
        backbone: Whose tokenizer reads the ids.
        settings: As `settings_of` gives them.
    """

    def __init__(self, backbone: Backbone, settings: dict[str, Any]) -> None:
        self._decode = backbone.tokenizer.decode
        ends = settings["eos_token_id"]
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._stops = settings.get("stop_strings") or []
        self._ids: list[int] = []
        self._told = 0
        self.has_ended = False

    def add(self, ids: Sequence[int]) -> str:
        """Takes new tokens; returns the text that is certain now and was not before."""
        for token in ids:
            if self.has_ended or token in self._ends:
                self.has_ended = True
                break
            self._ids.append(token)
        return self._new_text(is_last=self.has_ended)

    def finish(self) -> str:
        """Returns the text that was held back, once no more tokens come."""
        self.has_ended = True
        return self._new_text(is_last=True)

    def _new_text(self, is_last: bool) -> str:
        text = self._decode(self._ids, skip_special_tokens=True)
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.has_ended = is_last = True
            text = text[: min(places)]
        certain = len(text) if is_last else len(text) - self._num_held_back(text)
        new, self._told = text[self._told : certain], max(self._told, certain)
        return new

    def _num_held_back(self, text: str) -> int:
        """Characters at the end that may still change: half a character's bytes, or the beginning of a stop string."""
        if text.endswith("\ufffd"):
            return 1
        beginnings = (stop[:n] for stop in self._stops for n in range(1, len(stop)))
        return max((len(each) for each in beginnings if text.endswith(each)), default=0)


def texts_of(backbone: Backbone, ids_BN: Tensor, settings: dict[str, Any]) -> list[str]:
    """Each row's answer in words."""
    texts = []
    for ids in ids_BN.tolist():
        row = RowText(backbone, settings)
        texts.append(row.add(ids) + row.finish())
    return texts


class _RowStreamer(BaseStreamer):
    """Hands each step's tokens on, a token a row; the rows as they were given, which come first, are left out."""

    def __init__(self, rows: Sequence[int], hand_on: Callable[[list[tuple[int, int]]], None]) -> None:
        self._rows, self._hand_on, self._has_begun = rows, hand_on, False

    def put(self, value: Tensor) -> None:
        if self._has_begun:
            self._hand_on(list(zip(self._rows, value.tolist(), strict=True)))
        self._has_begun = True

    def end(self) -> None:
        """Nothing is held back here."""


class _Cancelled(StoppingCriteria):
    """Ends all rows once nobody listens any more."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


def stream(
    backbone: Backbone, batches: Sequence[tuple[Prompt, Sequence[int], Sequence[Example]]], settings: dict[str, Any]
) -> Iterator[Piece]:
    """Writes batch after batch in a thread of its own, and yields the text as it comes.

    Args:
        backbone: The frozen model.
        batches: Each batch's prompt, its rows' numbers, and the rows.
        settings: As `settings_of` gives them; beams cannot be streamed.

    Raises:
        PromptError: For beams, whose text is known only at the end.
    """
    if (_setting(backbone, settings, "num_beams") or 1) > 1:
        raise PromptError("generate(stream=True, num_beams=…)", "one beam", "Leave one of the two out")
    return _streamed(backbone, batches, settings)


def _streamed(
    backbone: Backbone, batches: Sequence[tuple[Prompt, Sequence[int], Sequence[Example]]], settings: dict[str, Any]
) -> Iterator[Piece]:
    steps: queue.Queue[list[tuple[int, int]] | Exception | None] = queue.Queue()
    cancelled = threading.Event()

    def work() -> None:
        try:
            for prompt, rows, examples in batches:
                streamer = _RowStreamer(rows, steps.put)
                criteria = StoppingCriteriaList([*settings.get("stopping_criteria", ()), _Cancelled(cancelled)])
                write(backbone, prompt, examples, {**settings, "streamer": streamer, "stopping_criteria": criteria})
                if cancelled.is_set():
                    return
        except Exception as error:  # it is raised again where the text is read
            steps.put(error)
        finally:
            steps.put(None)

    texts = {row: RowText(backbone, settings) for _, rows, _ in batches for row in rows}
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            for row, token in step:
                text = "" if texts[row].has_ended else texts[row].add([token])
                if text:
                    yield Piece(row, text)
        for row, rest in texts.items():
            text = rest.finish()
            if text:
                yield Piece(row, text)
    finally:
        cancelled.set()
        worker.join()
