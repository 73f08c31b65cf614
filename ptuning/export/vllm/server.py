"""A connection to a server that speaks OpenAI's protocol: requests, streams, bounded retries, and what errors mean.

Knows nothing of prompts, rows or what requests hold.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx2

from ptuning.errors import ConfigError, ServerError

MAX_RETRIES, TIMEOUT = 4, 300.0  # the defaults; seconds without a byte from the server
_CONNECT_TIMEOUT, _FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 0.5, 8.0  # seconds
_TOO_LARGE = 413
_PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""
_NO_KEY = {401, 403}
_ABOUT_THE_ROW = {400, _TOO_LARGE, 422}
_EVENT, _END = "data:", "[DONE]"


class RefusedError(ServerError):
    """A request that the server refuses for what it holds; it may well answer others."""


class UnreachableError(ServerError):
    """A server that does not answer at all."""


class Server:
    """A server, and this client's connections to it. Threads may share it.

    Args:
        url: The server's address, with or without `/v1`.
        api_key: The key that the server asks for; None: no key is sent.
        num_connections: The most connections at once.
        max_retries: How often a request is sent again after the connection broke or the server failed.
        timeout: Seconds that the server may take to send the next byte.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        num_connections: int = 1,
        max_retries: int = MAX_RETRIES,
        timeout: float = TIMEOUT,
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("a key that no header can hold", "printable ASCII characters", "Correct it")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._max_retries = max_retries
        self._lock = threading.Lock()
        self.num_requests = self.num_bytes_sent = 0
        """Requests with a body that were sent, those that failed included, and the bytes of their bodies."""
        try:
            self._client = httpx2.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx2.Timeout(timeout, connect=_CONNECT_TIMEOUT),
                limits=httpx2.Limits(max_connections=num_connections, max_keepalive_connections=num_connections),
            )
            is_address = httpx2.URL(self.url).scheme in ("http", "https") and bool(httpx2.URL(self.url).host)
        except httpx2.InvalidURL as error:
            raise _no_address(url) from error
        if not is_address:
            raise _no_address(url)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def get(self, path: str, stopping: threading.Event) -> Any:
        """What the server tells at a path; errors as in `post`."""
        return self._answer("GET", path, None, stopping)

    def post(self, path: str, body: Mapping[str, Any], stopping: threading.Event) -> Any:
        """The server's answer to a request.

        Args:
            path: The path.
            body: The request.
            stopping: Once it is set, nothing is sent again.

        Raises:
            RefusedError: If the server refuses this request, or fails at it time and again but works otherwise.
            ServerError: If the server cannot be reached, does not know the caller, or cannot do what is asked.
        """
        return self._answer("POST", path, _encoded(body), stopping)

    def stream(
        self,
        path: str,
        body: Callable[[], Mapping[str, Any]],
        is_last: Callable[[dict[str, Any]], bool],
        stopping: threading.Event,
    ) -> Iterator[dict[str, Any]]:
        """The pieces of a streamed answer, as they come.

        A stream that breaks is asked for again, with what `body` returns then: it may leave out what has come. Errors
        as in `post`.

        Args:
            path: The path.
            body: Returns the request.
            is_last: Whether no text follows a piece.
            stopping: As in `post`.
        """
        reason, is_at_work = "", False
        for _ in self._tries(stopping):
            content = _encoded(body())
            try:
                with self._sent("POST", path, content) as response:
                    if response.status_code >= 400:
                        response.read()
                        reason, is_at_work = self._failure(response), True
                        continue
                    events = _events(response)
                    for event in events:
                        if "error" in event:
                            self._require_passing(_code(event), _message(event))
                            raise httpx2.ReadError(_message(event))
                        yield event
                        if is_last(event):
                            with suppress(httpx2.TransportError):
                                deque(events, maxlen=0)  # a connection is used again only behind its answer's end
                            return
                    reason, is_at_work = "its answer ended half-way", False
            except httpx2.TransportError as error:
                reason, is_at_work = _told(error), False
        raise self._gone(reason, is_at_work)

    def is_healthy(self) -> bool:
        """Whether the server says that it can work."""
        try:
            return self._client.get("/health").status_code < 400
        except httpx2.TransportError:
            return False

    def _answer(self, method: str, path: str, content: bytes | None, stopping: threading.Event) -> Any:
        reason, is_at_work = "", False
        for _ in self._tries(stopping):
            try:
                with self._sent(method, path, content) as response:
                    response.read()
            except httpx2.TransportError as error:
                reason, is_at_work = _told(error), False
                continue
            if response.status_code >= 400:
                reason, is_at_work = self._failure(response), True
                continue
            try:
                return response.json()
            except ValueError as error:
                raise ServerError(
                    f"{self.url}{path}, which answers with something else than JSON",
                    "the address of a server such as vLLM",
                    "Check the address",
                ) from error
        raise self._gone(reason, is_at_work)

    @contextmanager
    def _sent(self, method: str, path: str, content: bytes | None) -> Iterator[httpx2.Response]:
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if content is not None:
            with self._lock:
                self.num_requests += 1
                self.num_bytes_sent += len(content)
        with self._client.stream(method, path, content=content, headers=headers) as response:
            yield response

    def _tries(self, stopping: threading.Event) -> Iterator[int]:
        """Counts the tries of a request, with longer and longer pauses between them."""
        for i in range(self._max_retries + 1):
            if i and stopping.wait(min(_FIRST_PAUSE * 2 ** (i - 1), _LONGEST_PAUSE)):
                return
            yield i

    def _failure(self, response: httpx2.Response) -> str:
        """Why a request failed; raises where the same request cannot succeed."""
        try:
            message = _message(response.json())
        except ValueError:
            message = response.text[:500]
        self._require_passing(response.status_code, message)
        return f"status {response.status_code}: {message}"

    def _require_passing(self, status: int, message: str) -> None:
        if status in _PASSING:
            return
        if status in _NO_KEY:
            received = f"{self.url}, which does not accept the key ({status} {message})"
            raise ServerError(received, "the server's key", "Set VLLM_API_KEY, or give api_key")
        if "--enable-prompt-embeds" in message:
            received = f"{self.url}, which takes no embeddings"
            raise ServerError(received, "a vLLM that was started with --enable-prompt-embeds", "Start it so")
        if "hidden_size" in message:
            received = f"{self.url}, which serves another model ({message})"
            raise ServerError(received, "the model that the prompt was tuned on", "Serve that model")
        if status not in _ABOUT_THE_ROW:
            received = f"{self.url}, which refuses the request (status {status}: {message})"
            raise ServerError(received, "a server of OpenAI's completions, such as vLLM", "Check the address and model")
        if status == _TOO_LARGE or "length" in message:
            raise RefusedError(
                f"a row that is too long for the server ({message})",
                "one that fits into its positions and limits",
                "Shorten the row, or start the server with a larger --max-model-len",
            )
        raise RefusedError(f"a row that the server refuses ({message})", "one that it takes", "Change the row")

    def _gone(self, reason: str, is_at_work: bool) -> ServerError:
        """The error after the last try."""
        if is_at_work and self.is_healthy():
            return RefusedError(f"a row at which the server fails ({reason})", "one that it answers", "See its log")
        told = f"{self.url}, which does not answer ({reason})" if reason else f"{self.url}, of which no more was asked"
        return UnreachableError(told, "a server at work", "Start it, or wait until it is up")


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    for line in response.iter_lines():
        text = line.removeprefix(_EVENT).strip()
        if line.startswith(_EVENT) and text != _END:
            yield json.loads(text)


def _code(event: Mapping[str, Any]) -> int:
    """The status of an error within a stream."""
    code = event["error"].get("code") if isinstance(event["error"], Mapping) else None
    return code if isinstance(code, int) else 500


def _message(answer: Any) -> str:
    """A server's own words in an error."""
    error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, Mapping) else answer
    return str(error.get("message", error) if isinstance(error, Mapping) else error)


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


def _no_address(url: str) -> ConfigError:
    return ConfigError(f"the address {url!r}", "one such as http://127.0.0.1:8000", "Correct it")
