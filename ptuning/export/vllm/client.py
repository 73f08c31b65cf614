"""`VLLMClient`, which answers rows through a vLLM server as `PromptedLM` answers them with a model of its own.

Knows nothing of how a request is written or sent.
"""

import queue
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

from ptuning.data import Coder, Example, Row, Rows, Task, Template, as_row, records, warn_of_cut
from ptuning.errors import ConfigError, DataError, PromptError, PTuningError, ServerError
from ptuning.export.vllm.asking import Asked, Asking, Limits
from ptuning.export.vllm.chat import Part, chat_parts
from ptuning.export.vllm.exported import ExportedPrompts
from ptuning.export.vllm.in_flight import in_flight
from ptuning.export.vllm.served import Served, served_by
from ptuning.export.vllm.server import MAX_RETRIES, TIMEOUT, RefusedError, Server
from ptuning.inference import MAX_NEW_TOKENS, Classification, Piece, require_limits

CONCURRENCY = 16  # requests at once, the default
_MOST_TOLD = 10  # row numbers in a message

Answer = Classification | str


class UnansweredError(ServerError):
    """Rows that a server did not answer. Nothing that was answered is lost.

    Args:
        rows: The indices of the rows without an answer.
        answers: Row's index -> its answer.
        cause: Why the first of them has none.
    """

    def __init__(self, rows: Sequence[int], answers: dict[int, Answer], cause: PTuningError) -> None:
        self.rows, self.answers = tuple(rows), answers
        told = ", ".join(map(str, self.rows[:_MOST_TOLD]))
        more = f" and {len(self.rows) - _MOST_TOLD:,} more" if len(self.rows) > _MOST_TOLD else ""
        count = len(self.rows) + len(answers)
        received = f"{len(self.rows):,} of {count:,} rows unanswered (rows {told}{more}): {cause.received}"
        super().__init__(received, cause.expected, cause.remedy)


class VLLMClient:
    """Answers rows with soft prompts through a vLLM server that serves their base.

    Rows are embedded here and sent as `prompt_embeds`, many at a time. The same prompt is the same bytes in every
    request, so vLLM's prefix cache runs it once. Threads may share a client. Close it, or use it in a `with` block.

    Args:
        prompts: What a directory holds that `ptuning export --to vllm` wrote.
        url: The server's address, such as `http://127.0.0.1:8000`.
        api_key: The key that the server asks for; None: no key is sent.
        model: The name under which the server serves the base; None: the only one that it serves.
        concurrency: The most requests at once.
        max_retries: How often a request is sent again after the connection broke or the server failed.
        timeout: Seconds that the server may take to send the next byte.
        allow_other_base: Whether to accept a server whose model does not answer as the base does.

    Raises:
        ConfigError: For an address that is none, and for no concurrency.
    """

    def __init__(
        self,
        prompts: ExportedPrompts,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        concurrency: int = CONCURRENCY,
        max_retries: int = MAX_RETRIES,
        timeout: float = TIMEOUT,
        allow_other_base: bool = False,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency={concurrency}", "1 or more", "Correct it")
        self.prompts, self.server = prompts, Server(url, api_key, concurrency, max_retries, timeout)
        self._model, self._concurrency, self._allow_other_base = model, concurrency, allow_other_base
        self._served: Served | None = None
        self._never_by_chat = set[str]()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, directory: str | Path, url: str, *, trust_remote_code: bool = False, **options: Any) -> "VLLMClient":
        """Reads a directory that `ptuning export --to vllm` wrote; nothing is sent before the first row.

        Args:
            directory: The directory.
            url: As above.
            trust_remote_code: Whether code that comes with the tokenizer may run.
            options: As above.

        Raises:
            PromptError: If it is no such directory, or a broken one.
        """
        return cls(ExportedPrompts.load(directory, trust_remote_code), url, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self.server.close()

    @property
    def served(self) -> Served:
        """What the server serves, found out on first use: the model's name, its limit, and how far it is from the base.

        Raises:
            ServerError: If the server cannot be reached, takes no embeddings, or serves another model.
        """
        with self._lock:
            if self._served is None:
                checked = served_by(self.server, self.prompts, self._model, self._allow_other_base, threading.Event())
                self._served = checked
            return self._served

    def task(self, name: str | None = None) -> Task:
        """The named prompt's task; None: that of the only prompt. Raises `PromptError` for an unknown one."""
        return self.prompts.tasks[self.prompts.named(name)]

    def columns(self, name: str | None = None) -> tuple[str, ...]:
        """The columns that the named prompt's template needs."""
        return self.prompts.coders[self.prompts.named(name)].columns

    def classify(self, rows: Rows, prompt: str | Sequence[str] | None = None) -> list[Classification]:
        """The most likely label of each row, and every label's probability.

        Args:
            rows: One mapping per row, with the template's columns, or a text if it has one column; a data frame or data
                set of such rows.
            prompt: A prompt's name, or one per row; None if there is only one prompt.

        Raises:
            DataError: For a row that lacks a column, is empty or does not fit.
            PromptError: For a prompt that is unknown or has no labels.
            ServerError: If the server cannot be reached, takes no embeddings, or serves another model.
            UnansweredError: For rows that the server did not answer; it holds the answers of the others.
        """
        asked = self._asked(rows, prompt, Coder.encode_questions)
        without = next((each.name for each in asked if not self.task(each.name).is_classification), None)
        if without is not None:
            raise PromptError(f"classify with prompt {without!r}, which has no verbalizer", "labels", "Use generate")
        found = dict(self._answered(asked, lambda asking, each: asking.classification(each)))
        return [found[i] for i in range(len(asked))]

    @overload
    def generate(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Literal[False] = False,
        stop_strings: Sequence[str] = (),
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        *,
        stream: Literal[True],
        stop_strings: Sequence[str] = (),
    ) -> Iterator[Piece]: ...

    def generate(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: bool = False,
        stop_strings: Sequence[str] = (),
    ) -> list[str] | Iterator[Piece]:
        """Generates an answer for each row, greedily.

        Args:
            rows: As in `classify`.
            prompt: As in `classify`.
            max_new_tokens: The most tokens in an answer.
            stream: Whether to yield `Piece(row, text)` as the text comes; a row's pieces joined are its answer.
            stop_strings: Texts that end an answer and are left out of it.

        Raises:
            DataError: As in `classify`.
            PromptError: For a prompt that is unknown, and for limits that leave no answer.
            ServerError: As in `classify`.
            UnansweredError: As in `classify`.
        """
        limits = _limits(max_new_tokens, stop_strings)
        asked = self._asked(rows, prompt, lambda coder, chosen: coder.encode_prompts(chosen, limits.max_new_tokens))
        if stream:
            return self._streamed(asked, limits)
        found = dict(self._answered(asked, lambda asking, each: asking.text(each, limits)))
        return [found[i] for i in range(len(asked))]

    def answers(
        self,
        rows: Rows,
        prompt: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stop_strings: Sequence[str] = (),
        skip: Collection[int] = (),
    ) -> Iterator[tuple[int, Answer]]:
        """Each row's index and its answer as soon as it is there: a classification where the prompt has labels.

        Errors as in `classify` and `generate`.

        Args:
            rows: As in `classify`.
            prompt: The prompt that answers all rows; None if there is only one.
            max_new_tokens: As in `generate`.
            stop_strings: As in `generate`.
            skip: The indices of rows that are not asked for.
        """
        limits, name = _limits(max_new_tokens, stop_strings), self.prompts.named(prompt)
        if self.task(name).is_classification:
            asked = self._asked(rows, name, Coder.encode_questions, skip)
            return self._answered(asked, lambda asking, each: asking.classification(each))

        def encode(coder: Coder, chosen: list[Row]) -> list[Example]:
            return coder.encode_prompts(chosen, limits.max_new_tokens)

        asked = self._asked(rows, name, encode, skip)
        return self._answered(asked, lambda asking, each: asking.text(each, limits))

    def _asked(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None,
        encode: Callable[[Coder, list[Row]], list[Example]],
        skip: Collection[int] = (),
    ) -> list[Asked]:
        """Each row paired with its prompt, in row order; rows of one prompt are encoded together."""
        given, found = records(rows), dict[int, Asked]()
        names = [self.prompts.named(each) for each in _one_each(prompt, len(given))]
        for name in dict.fromkeys(names):
            coder = self.prompts.coders[name]
            its_rows = [i for i, each in enumerate(names) if each == name and i not in skip]
            chosen = [as_row(given[i], f"row {i}", coder.columns) for i in its_rows]
            for i, row, example in zip(its_rows, chosen, encode(coder, chosen), strict=True):
                if not example.ids:
                    received = f"row {i} with no tokens before the answer (prompt {name!r})"
                    raise DataError(received, "1 token or more", "Write some text, or put words into the template")
                found[i] = Asked(i, name, example, _parts(coder, row, example))
        asked = [found[i] for i in sorted(found)]
        warn_of_cut("answering", [each.example for each in asked])
        return asked

    def _answered(self, asked: Sequence[Asked], answer: Callable[[Asking, Asked], Any]) -> Generator[tuple[int, Any]]:
        """Row's index and its answer, as they come; raises `UnansweredError` at the end if some have none."""
        if not asked:
            return
        stopping = threading.Event()
        asking = Asking(self.server, self.served, self.prompts, self._never_by_chat, stopping)
        answers, cause = dict[int, Any](), None
        work = in_flight(asked, lambda each: answer(asking, each), self._concurrency, stopping, _is_of_a_row)
        for each, result in work:
            if isinstance(result, PTuningError):
                cause = result if cause is None or isinstance(cause, RefusedError) else cause
            elif isinstance(result, Exception):
                raise result
            else:
                answers[each.row] = result
                yield each.row, result
        if cause is not None:
            raise UnansweredError([each.row for each in asked if each.row not in answers], answers, cause) from cause

    def _streamed(self, asked: Sequence[Asked], limits: Limits) -> Iterator[Piece]:
        """Pieces of all rows as they come; raises `UnansweredError` at the end if some rows were not finished."""
        pieces: queue.Queue[Any] = queue.Queue()  # a piece, an error, or None at the end

        def answer(asking: Asking, each: Asked) -> str:
            texts = []
            for text in asking.pieces(each, limits):
                texts.append(text)
                pieces.put(Piece(each.row, text))
                if stopped.is_set():
                    break
            return "".join(texts)

        def work() -> None:
            try:
                with closing(self._answered(asked, answer)) as answered:
                    for _ in answered:
                        if stopped.is_set():
                            return
            except Exception as error:  # raised again in the caller's thread
                pieces.put(error)
            finally:
                pieces.put(None)

        stopped, worker = threading.Event(), threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stopped.set()
            worker.join()


def _limits(max_new_tokens: int, stop_strings: Sequence[str]) -> Limits:
    require_limits(max_new_tokens, stop_strings)
    return Limits(max_new_tokens, tuple(stop_strings))


def _one_each(prompt: str | Sequence[str] | None, num_rows: int) -> Sequence[str | None]:
    """The prompt that is named for each row."""
    if prompt is None or isinstance(prompt, str):
        return [prompt] * num_rows
    if len(prompt) != num_rows:
        received = f"{len(prompt)} prompt names for {num_rows} rows"
        raise PromptError(received, "a prompt's name, or one per row", "Name a prompt")
    return prompt


def _parts(coder: Coder, row: Row, example: Example) -> list[Part] | None:
    """The row as parts of a chat message, where its prompt uses the model's chat template."""
    if not coder.task.chat_template or example.was_cut:
        return None
    plain = {name: coder.plain(row.values[name]) for name in coder.columns}
    return chat_parts(Template.parse(coder.task.template), plain)


def _is_of_a_row(error: Exception) -> bool:
    """Whether other rows may be answered after this error."""
    return isinstance(error, RefusedError)
