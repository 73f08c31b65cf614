"""A conversation with a prompted model; each turn continues from the cache of the turns before it.

Knows nothing of prompt names or files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Batch, Coder, Example, as_row, warn_of_cut
from ptuning.errors import ConfigError, DataError, ModelError, PromptError
from ptuning.forward import KeptPrompts, Prompt, as_batch_prompt, memory_explained
from ptuning.inference.generation import writing_options, written
from ptuning.inference.row_text import texts_of
from ptuning.model import Backbone, CausalBackbone


class Conversation:
    """The user's turns and the model's answers, in order.

    The first turn fills the prompt's template. Later turns use the model's chat template if the task does
    (`chat_template: true`); otherwise they are plain text after the answer. Only new tokens are run, unless the model's
    cache cannot be kept; then the whole conversation is run again. A turn that fails leaves the conversation unchanged.

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
        """All tokens so far, with answers and their stop strings; negative ids are virtual tokens."""

    @torch.no_grad()
    def send(
        self,
        turn: str | Mapping[str, Any],
        max_new_tokens: int | None = None,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> str:
        """Sends a turn and returns the answer.

        Args:
            turn: In the first turn, a row with the template's columns, or plain text if it has one column. Then text.
            max_new_tokens: The most tokens in the answer, as in `PromptedLM.generate`.
            stop_strings: Texts that end the answer and are left out of it.
            options: As in `PromptedLM.generate`, except for beams and options that need a cache of their own.

        Raises:
            DataError: If the turn has no text, or the conversation has more tokens than the model has positions.
            PromptError: For an option that a conversation cannot use.
            OutOfMemoryError: If the conversation does not fit into the device's memory.
        """
        backbone, settings = self._backbone, writing_options(self._backbone, max_new_tokens, stop_strings, options)
        if settings.num_beams > 1 or settings.has_own_cache:
            raise PromptError(
                "a conversation with beams or a cache of transformers' own", "one beam", "Leave the option out"
            )
        ids = [*self.ids, *self._next_ids(turn)] if self.ids else self._first_ids(turn, settings.max_new_tokens)
        backbone.require_room(len(ids) + settings.max_new_tokens)
        row = Example(ids, [])
        batch = backbone.collate([row]).to(backbone.device)
        prompt = self._prompt.embeddings(backbone, batch) if self._prompt_PH is None else self._prompt_PH
        prompt_PH = prompt if prompt.ndim == 2 else prompt[0]
        cache, self._cache = self._cache or self._new_cache(batch), None  # a turn that fails leaves no cache
        with memory_explained([row], settings.max_new_tokens):
            new_1N = written(backbone, prompt_PH, batch.ids_BT, batch.mask_BT, cache, settings)
        new = new_1N[0].tolist()
        self._prompt_PH, self._cache = prompt_PH, cache  # a conditioned prompt is computed in the first turn
        self.ids = [*ids, *(new[:-1] if new[-1] in settings.ends else new)]  # the next turn's frame adds the end
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
            raise DataError(f"a turn {turn!r}", "text", "Give a row of columns in the first turn only")
        tokenizer = self._backbone.tokenizer
        before, after = _next_turn(tokenizer) if self._coder.task.chat_template else ("", "")
        return self._coder.next_ids(before + self._coder.plain(turn) + after)

    def _new_cache(self, batch: Batch) -> Any:
        """A cache for the conversation, with the prompt's prefix if it is kept; None if the model cannot keep one."""
        if not self._backbone.supports_prefix_cache:
            return None
        if isinstance(self._prompt, KeptPrompts) and self._prompt.shares(batch):
            return self._prompt.spread(self._backbone)[0]
        return self._backbone.new_cache()


def _next_turn(tokenizer: Any) -> tuple[str, str]:
    """What the model's chat template writes between an answer and the user's next turn, and after that turn."""
    turns = [(role, f"\ue000{i}\ue001") for i, role in enumerate(("user", "assistant", "user"))]
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        framed = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        _, rest = framed.split(turns[1][1])
        between, after = rest.split(turns[2][1])
    except Exception as error:  # a chat template is a program and may raise anything
        raise ConfigError(
            f"a second turn with a chat template that cannot frame one ({error})",
            "a template that writes each turn's text once",
            "Set chat_template to false and write the frame in each turn",
        ) from error
    return between, after
