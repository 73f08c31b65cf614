"""Asks a server about one row: its label's probabilities, its written answer, or that answer piece by piece.

Knows nothing of how rows are encoded, or how many are asked at once.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptuning.data import Example
from ptuning.export.vllm.chat import Part, is_same, messages
from ptuning.export.vllm.embeddings import payload
from ptuning.export.vllm.exported import ExportedPrompts
from ptuning.export.vllm.labels import MOST_IDS, Beginning, LabelPaths, Question
from ptuning.export.vllm.requests import (
    CHAT,
    COMPLETIONS,
    chat_scoring,
    is_last,
    read_choice,
    read_ids,
    read_log_probs,
    scoring,
    writing,
)
from ptuning.export.vllm.served import Served
from ptuning.export.vllm.server import RefusedError, Server
from ptuning.inference import Classification, RowText

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A row paired with its prompt."""

    row: int
    """The row's index."""
    name: str
    """The prompt's name."""
    example: Example
    """The row's tokens."""
    parts: list[Part] | None
    """The row as parts of a chat message; None where it is sent whole."""


@dataclass(frozen=True)
class Limits:
    """Where written answers end."""

    max_new_tokens: int
    """The most tokens."""
    stop_strings: tuple[str, ...]
    """The texts that end an answer and are left out of it."""


class Asking:
    """Asks one row at a time. Threads may share it.

    Args:
        server: The server.
        served: What it serves.
        prompts: The prompts.
        never_by_chat: The prompts whose text the server reads otherwise than ptuning; those found out are added.
        stopping: Once it is set, nothing is sent again.
    """

    def __init__(
        self,
        server: Server,
        served: Served,
        prompts: ExportedPrompts,
        never_by_chat: set[str],
        stopping: threading.Event,
    ) -> None:
        self._server, self._served, self._prompts = server, served, prompts
        self._never_by_chat, self._stopping = never_by_chat, stopping
        self._paths = {name: LabelPaths(coder.label_ids) for name, coder in prompts.coders.items() if coder.labels}

    def classification(self, asked: Asked) -> Classification:
        """The row's label and the probabilities of all labels."""
        coder, paths = self._prompts.coders[asked.name], self._paths[asked.name]
        self._require_room(asked, coder.longest_label)
        found = dict[Beginning, dict[int, float]]()
        for question in paths.questions:
            answers = self._scored(asked, question, paths.are_single)
            for beginning, own in zip(question.beginnings, answers, strict=True):
                found.setdefault(beginning, {}).update(own)
        shares = torch.tensor(paths.log_probs(found)).softmax(dim=0).tolist()
        probabilities = dict(zip(coder.labels, shares, strict=True))
        return Classification(max(probabilities, key=probabilities.__getitem__), probabilities)

    def text(self, asked: Asked, limits: Limits) -> str:
        """The answer that the model writes."""
        self._require_room(asked, limits.max_new_tokens)
        body = self._writing(limits, limits.max_new_tokens, is_streamed=False)
        answer = self._by_chat(asked, body) or self._post(
            COMPLETIONS, {**body, **self._whole(asked.example.ids, asked)}
        )
        choice = read_choice(answer)
        text = self._row_text(limits)
        return text.add(read_ids(choice or {})) + text.finish()

    def pieces(self, asked: Asked, limits: Limits) -> Iterator[str]:
        """The answer's text as it comes; a stream that breaks goes on behind what has come."""
        self._require_room(asked, limits.max_new_tokens)
        written, text = list[int](), self._row_text(limits)

        def body() -> dict[str, Any]:
            own = self._writing(limits, limits.max_new_tokens - len(written), is_streamed=True)
            return {"model": self._served.name, **own, **self._whole([*asked.example.ids, *written], asked)}

        for chunk in self._server.stream(COMPLETIONS, body, is_last, self._stopping):
            choice = read_choice(chunk)
            if choice is None:
                continue
            new = read_ids(choice)
            written += new
            if piece := text.add(new):
                yield piece
            if text.has_ended and not is_last(chunk):  # at a stop string of which the server was not told
                break
        if piece := text.finish():
            yield piece

    def _scored(self, asked: Asked, question: Question, are_single: bool) -> list[dict[int, float]]:
        """Token id -> log-probability, after each of the question's beginnings."""
        if are_single and len(question.ids) <= MOST_IDS:
            answer = self._by_chat(asked, chat_scoring(question.ids))
            if answer is not None:
                return read_log_probs(answer, question.ids)
        rows = [[*asked.example.ids, *beginning] for beginning in question.beginnings]
        payloads = [self._payload(ids, asked.name) for ids in rows]
        answer = self._post(COMPLETIONS, scoring(payloads, question.ids, are_single))
        return read_log_probs(answer, question.ids, len(rows))

    def _by_chat(self, asked: Asked, body: Mapping[str, Any]) -> Any:
        """The answer to the row as a chat message; None where the server does not read it as the prompt was tuned."""
        if asked.parts is None or asked.name in self._never_by_chat:
            return None

        def virtual(places: range) -> str:
            return self._payload([-1 - i for i in places], asked.name)

        try:
            answer = self._post(CHAT, {**body, "messages": messages(asked.parts, virtual)})
        except RefusedError as error:
            reason = error.received
        else:
            if is_same(asked.example.ids, answer.get("prompt_token_ids")):
                return answer
            reason = "the server makes other ids of the text"
        self._never_by_chat.add(asked.name)
        _log.info(f"prompt {asked.name!r} is sent whole and not as a chat message: {reason}")
        return None

    def _writing(self, limits: Limits, max_new_tokens: int, is_streamed: bool) -> dict[str, Any]:
        return writing(max_new_tokens, self._prompts.end_ids, limits.stop_strings, is_streamed)

    def _whole(self, ids: Sequence[int], asked: Asked) -> dict[str, str]:
        return {"prompt_embeds": self._payload(ids, asked.name)}

    def _payload(self, ids: Sequence[int], name: str) -> str:
        return payload(self._prompts.embeddings.of(ids, name))

    def _row_text(self, limits: Limits) -> RowText:
        return RowText(self._prompts.tokenizer, self._prompts.end_ids, limits.stop_strings)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._server.post(path, {"model": self._served.name, **body}, self._stopping)

    def _require_room(self, asked: Asked, num_new_tokens: int) -> None:
        """Raises `RefusedError` for a row that the server would refuse, or whose answer it would cut."""
        most, length = self._served.max_tokens, len(asked.example.ids) + num_new_tokens
        if most is not None and length > most:
            raise RefusedError(
                f"row {asked.row}: {length} tokens with its answer",
                f"at most {most}, the server's --max-model-len",
                "Shorten the row, or start the server with more",
            )
