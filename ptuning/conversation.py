"""A conversation with a prompted model: each turn goes on from the cache of those before it.

Knows nothing of prompts' names or files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.backbone import Backbone, CausalBackbone
from ptuning.data import Coder, Example
from ptuning.errors import ConfigError, DataError, ModelError, PromptError
from ptuning.forward import Prompt, embeddings_of
from ptuning.generation import settings_of, texts_of
from ptuning.placement import place
from ptuning.prefix import RowPrompts
from ptuning.rows import as_row
from ptuning.template import text_ids


class Conversation:
    """Turns and answers, one after the other.

    The first turn fills the prompt's template. Those that follow are the user's next turns in the model's own chat
    template where the task has one (`chat_template: true`), and plain text behind the answer where it has none. Only
    what is new is run; models without a cache that can be kept run the whole again.

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
        self._backbone, self._prompt, self._coder = backbone, prompt, coder
        self._cache: Any = None
        self._prompt_PH: Tensor | None = None
        self.ids: list[int] = []
        """All tokens so far, answers included; negative ids are virtual tokens."""

    @torch.no_grad()
    def send(
        self,
        turn: str | Mapping[str, Any],
        max_new_tokens: int = 50,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> str:
        """Says something and returns the answer.

        Args:
            turn: The first time a row of the template's columns (or its text where there is one column); then text.
            max_new_tokens: The most tokens the answer may have.
            stop_strings: Texts that end the answer, left out of it.
            options: As in `PromptedLM.generate`, but for beams.

        Raises:
            DataError: When the turn has no text, or the conversation is beyond the model's positions.
        """
        settings = settings_of(self._backbone, max_new_tokens, stop_strings, options)
        if settings.get("num_beams", 1) > 1:
            raise PromptError("a conversation with num_beams", "one beam", "Leave it out")
        ids = self._first_ids(turn, max_new_tokens) if not self.ids else [*self.ids, *self._next_ids(turn)]
        self._backbone.require_room(len(ids) + max_new_tokens)
        if self._prompt_PH is None:
            self._begin(ids)
        return self._write(ids, settings)

    def _first_ids(self, turn: str | Mapping[str, Any], max_new_tokens: int) -> list[int]:
        columns = self._coder.columns
        if isinstance(turn, str):
            if len(columns) != 1:
                raise DataError(f"a text for a template with the columns {columns}", "one column", "Give a row")
            turn = {columns[0]: turn}
        row = as_row(turn, "the first turn", columns)
        return self._coder.encode_prompts([row], max_new_tokens)[0].ids

    def _next_ids(self, turn: str | Mapping[str, Any]) -> list[int]:
        if not isinstance(turn, str) or not turn:
            raise DataError(f"a turn {turn!r}", "text", "Give the template's columns in the first turn only")
        tokenizer = self._backbone.tokenizer
        before, after = _next_turn(tokenizer) if self._coder.task.chat_template else ("", "")
        return text_ids(tokenizer, [before + self._coder.plain(turn) + after])[0]

    def _begin(self, ids: list[int]) -> None:
        """Settles what the virtual tokens are, and takes up their kept prefix."""
        backbone, device = self._backbone, self._backbone.device
        batch = backbone.collate([Example(ids, [])]).to(device)
        made = embeddings_of(self._prompt, backbone, batch)
        self._prompt_PH = made if made.ndim == 2 else made[0]
        if not backbone.shares_prefix:
            return
        if isinstance(self._prompt, RowPrompts) and self._prompt.begins(batch):
            self._cache, _ = self._prompt.spread(backbone)
        else:
            self._cache = backbone.new_cache()

    def _write(self, ids: list[int], settings: dict[str, Any]) -> str:
        backbone = self._backbone
        assert self._prompt_PH is not None
        ids_1T = torch.tensor([ids], device=backbone.device)
        kept = {} if self._cache is None else {"past_key_values": self._cache}
        embeddings_1TH = place(backbone, self._prompt_PH, ids_1T)
        new_1N = backbone.generate(embeddings_1TH, ids_1T, torch.ones_like(ids_1T), **kept, **settings)
        new = new_1N[0].tolist()
        has_end = new[-1] in backbone.end_ids
        self.ids = [*ids, *(new[:-1] if has_end else new)]  # the frame of the next turn brings the end with it
        return texts_of(backbone, new_1N, settings)[0]


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
