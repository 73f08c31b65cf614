"""A conversation with a prompted model: each turn goes on from the cache of those before it.

Knows nothing of prompts' names or files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Batch, Coder, Example, as_row, warn_of_cut
from ptuning.errors import ConfigError, DataError, ModelError, PromptError
from ptuning.forward import KeptPrompts, Prompt, as_batch_prompt
from ptuning.inference.generation import writing_options, written
from ptuning.inference.row_text import texts_of
from ptuning.model import Backbone, CausalBackbone


class Conversation:
    """Turns and answers, one after the other.

    The first turn fills the prompt's template. Those that follow are the user's next turns in the model's own chat
    template where the task has one (`chat_template: true`), and plain text behind the answer where it has none. Only
    what is new is run; models without a cache that can be kept run the whole again. A turn that fails is as if it had
    not been said.

    Args:
        backbone: The frozen model.
        prompt: The soft prompt, as in `forward.label_logits`.
        coder: The task's coder.

    Raises:
        ModelError: For an encoder-decoder.
    """

    def __init__(self, backbone: Backbone, prompt: Prompt, coder: Coder) -> None:
        if not isinstance(backbone, CausalBackbone):
            raise ModelError(
                f"a conversation with {backbone.name}, an encoder-decoder", "a causal language model", "Use generate"
            )
        self._backbone, self._prompt, self._coder = backbone, as_batch_prompt(prompt), coder
        self._prompt_PH: Tensor | None = None
        self._cache: Any = None
        self.ids: list[int] = []
        """All tokens so far, answers included; negative ids are virtual tokens. A stop string stays among them."""

    @torch.no_grad()
    def send(
        self,
        turn: str | Mapping[str, Any],
        max_new_tokens: int | None = None,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> str:
        """Says something and returns the answer.

        Args:
            turn: The first time a row of the template's columns (or its text where there is one column); then text.
            max_new_tokens: The most tokens the answer may have, as in `PromptedLM.generate`.
            stop_strings: Texts that end the answer, left out of it.
            options: As in `PromptedLM.generate`, but for beams and those that need a cache of their own.

        Raises:
            DataError: When the turn has no text, or the conversation is beyond the model's positions.
            PromptError: For an option that a conversation cannot take.
        """
        backbone, settings = self._backbone, writing_options(self._backbone, max_new_tokens, stop_strings, options)
        if settings.num_beams > 1 or settings.has_own_cache:
            raise PromptError(
                "a conversation with beams or a cache of transformers' own", "one beam", "Leave the option out"
            )
        ids = [*self.ids, *self._next_ids(turn)] if self.ids else self._first_ids(turn, settings.max_new_tokens)
        backbone.require_room(len(ids) + settings.max_new_tokens)
        batch = backbone.collate([Example(ids, [])]).to(backbone.device)
        made = self._prompt.embeddings(backbone, batch) if self._prompt_PH is None else self._prompt_PH
        prompt_PH = made if made.ndim == 2 else made[0]
        cache, self._cache = self._cache or self._new_cache(batch), None  # none is left of a turn that fails
        new_1N = written(backbone, prompt_PH, batch.ids_BT, batch.mask_BT, cache, settings)
        new = new_1N[0].tolist()
        self._prompt_PH, self._cache = prompt_PH, cache  # a conditioned prompt stays that of the first turn
        self.ids = [*ids, *(new[:-1] if new[-1] in settings.ends else new)]  # the next turn's frame brings the end
        return texts_of(backbone, new_1N, settings)[0]

    def _first_ids(self, turn: str | Mapping[str, Any], max_new_tokens: int) -> list[int]:
        columns = self._coder.columns
        if isinstance(turn, str):
            if len(columns) != 1:
                raise DataError(f"a text for a template with the columns {columns}", "one column", "Give a row")
            turn = {columns[0]: turn}
        examples = self._coder.encode_prompts([as_row(turn, "the first turn", columns)], max_new_tokens)
        warn_of_cut("the first turn", examples)
        return examples[0].ids

    def _next_ids(self, turn: str | Mapping[str, Any]) -> list[int]:
        if not isinstance(turn, str) or not turn:
            raise DataError(f"a turn {turn!r}", "text", "Give the template's columns in the first turn only")
        tokenizer = self._backbone.tokenizer
        before, after = _next_turn(tokenizer) if self._coder.task.chat_template else ("", "")
        return self._coder.next_ids(before + self._coder.plain(turn) + after)

    def _new_cache(self, batch: Batch) -> Any:
        """A cache for the whole: with the prompt's kept prefix, empty, or None where the model has no other state."""
        if not self._backbone.supports_prefix_cache:
            return None
        if isinstance(self._prompt, KeptPrompts) and self._prompt.shares(batch):
            return self._prompt.spread(self._backbone)[0]
        return self._backbone.new_cache()


def _next_turn(tokenizer: Any) -> tuple[str, str]:
    """What the model's chat template writes between an answer and the user's next turn, and behind that turn."""
    turns = [(role, f"\ue000{i}\ue001") for i, role in enumerate(("user", "assistant", "user"))]
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        framed = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        _, rest = framed.split(turns[1][1])
        between, after = rest.split(turns[2][1])
    except Exception as error:  # a chat template is a program of its model's author
        raise ConfigError(
            f"a second turn with a chat template that cannot frame one ({error})",
            "one that writes each turn's text once",
            "Set chat_template to false and write the frame in each turn",
        ) from error
    return between, after
