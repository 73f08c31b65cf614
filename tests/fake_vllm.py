"""A small server on the loopback that answers as vLLM 0.32 does, with a tiny model; its messages are vLLM's own."""

import base64
import copy
import io
import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

_PLACEHOLDER = "<prompt_embeds>"
_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class _RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class FakeVLLM:
    """The server; use it in a `with` block.

    Attributes that a test may set: how it was started (`takes_embeds`, `api_key`, `max_model_len`, `version`, `names`,
    `logprobs_mode`, `knows_logprob_ids`, `default_penalty`), and what goes wrong (`failures`: statuses of the next
    completions, 0 for a connection that breaks; `dies_after`: completions that are answered before all connections
    break; `breaks_stream_after`: pieces, of the next stream alone; `delay`: seconds that each completion takes).
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), copy.deepcopy(tokenizer)
        self.takes_embeds, self.api_key, self.max_model_len = True, None, 96
        self.version, self.names, self.logprobs_mode = "0.32.0", ["tiny"], "raw_logprobs"
        self.knows_logprob_ids, self.default_penalty, self.is_healthy = True, 1.0, True
        self.failures, self.dies_after, self.breaks_stream_after, self.delay = deque[int](), 10**9, 0, 0.0
        self.asked = list[tuple[str, dict[str, Any]]]()
        self.num_answered = self.num_at_once = self.most_at_once = 0
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def rows(self) -> list[Tensor]:
        """The embeddings of every prompt that was sent, the probes' left out."""
        bodies = [body for path, body in self.asked if path.endswith("/completions") and not _is_probe(body)]
        return [_loaded(each) for body in bodies for each in _listed(body.get("prompt_embeds", []))]

    def __enter__(self) -> "FakeVLLM":
        fake = self

        class Handler(_Handler):
            owner = fake

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request, or an iterator over a stream's pieces."""
        if body.get("model") not in self.names:
            raise _RefusalError(404, f"The model `{body.get('model')}` does not exist.")
        rows, ids = self._read(path, body)
        for row_TH in rows:
            if len(row_TH) >= self.max_model_len:
                raise _RefusalError(
                    400,
                    f"The decoder prompt (length {len(row_TH)}) is longer than the maximum model length of "
                    f"{self.max_model_len}. Make sure that `max_model_len` is no smaller than the number of text "
                    "tokens.",
                )
        penalty = body.get("repetition_penalty")
        if (self.default_penalty if penalty is None else penalty) != 1.0:  # vLLM's issue 57719
            self.is_healthy = False
            raise _RefusalError(500, _DEAD)
        if body.get("stream"):
            return self._pieces(rows[0], body)
        choices = [{"index": i, **self._choice(each, body, "chat" in path)} for i, each in enumerate(rows)]
        answer = {"model": body["model"], "choices": choices[::-1]}
        return {**answer, "prompt_token_ids": ids} if "chat" in path and body.get("return_token_ids") else answer

    def _read(self, path: str, body: dict[str, Any]) -> tuple[list[Tensor], list[int]]:
        """The embeddings of the prompts, and the ids that a chat template made."""
        if "chat" in path:
            return self._read_chat(body)
        if body.get("echo"):
            raise _RefusalError(400, "Echo is unsupported with prompt embeds.")
        if body.get("prompt_logprobs") is not None:
            raise _RefusalError(400, "prompt_logprobs is not compatible with prompt embeds.")
        return [self._tensor(each) for each in _listed(body["prompt_embeds"])], []

    def _read_chat(self, body: dict[str, Any]) -> tuple[list[Tensor], list[int]]:
        tensors, texts = [], []
        for part in body["messages"][0]["content"]:
            if part["type"] == "prompt_embeds":
                tensors.append(self._tensor(part["data"]))
                texts.append(_PLACEHOLDER)
            elif _PLACEHOLDER in part["text"]:
                raise _RefusalError(400, f"Text content may not contain the reserved placeholder {_PLACEHOLDER!r}.")
            else:
                texts.append(part["text"])
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": [_PLACEHOLDER]})
        turn = [{"role": "user", "content": "\n".join(texts)}]
        framed = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        mark = tokenizer.convert_tokens_to_ids(_PLACEHOLDER)
        ids, rows, waiting = [], [], iter(tensors)
        for i in tokenizer(framed, add_special_tokens=False).input_ids:
            own = next(waiting) if i == mark else self.model.get_input_embeddings()(torch.tensor([i]))
            ids += [i] * len(own)
            rows.append(own)
        return [torch.cat(rows)], ids

    def _tensor(self, data: str) -> Tensor:
        if not self.takes_embeds:
            raise _RefusalError(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        row_TH, width = _loaded(data), self.model.get_input_embeddings().embedding_dim
        if row_TH.shape[1] != width:
            told = f"`prompt_embeds` hidden_size {row_TH.shape[1]} does not match the model's hidden_size {width}."
            raise _RefusalError(400, told)
        return row_TH.to(self.model.dtype)

    @torch.no_grad()
    def _log_probs(self, row_TH: Tensor) -> Tensor:
        with self._model_lock:
            return self.model(inputs_embeds=row_TH[None], use_cache=False).logits[0, -1].float().log_softmax(dim=0)

    def _choice(self, row_TH: Tensor, body: dict[str, Any], is_chat: bool) -> dict[str, Any]:
        if "logprobs" not in body:
            ids = list(self._written(row_TH, body))
            return {"text": self.tokenizer.decode(ids), "token_ids": ids, "finish_reason": "stop"}
        log_probs_V, allowed = self._log_probs(row_TH), body.get("allowed_token_ids")
        limited_V = torch.full_like(log_probs_V, -torch.inf)
        limited_V[allowed or slice(None)] = log_probs_V[allowed or slice(None)]
        given_V = limited_V.log_softmax(dim=0) if self.logprobs_mode == "processed_logprobs" else log_probs_V
        chosen, wanted = int(limited_V.argmax()), list(body["logprob_token_ids"])
        if len(wanted) > 128:
            raise _RefusalError(
                400, f"Requested logprob_token_ids of length {len(wanted)}, which is greater than max allowed"
            )
        if not self.knows_logprob_ids:
            wanted = given_V.topk(int(body["logprobs"])).indices.tolist()
        own = {f"token_id:{i}": max(float(given_V[i]), -9999.0) for i in [chosen, *wanted]}
        if is_chat:
            top = [{"token": token, "logprob": each} for token, each in own.items()]
            return {"message": {}, "logprobs": {"content": [{"top_logprobs": top}]}, "finish_reason": "length"}
        return {"text": "", "logprobs": {"top_logprobs": [own]}, "finish_reason": "length"}

    def _written(self, row_TH: Tensor, body: dict[str, Any]) -> Any:
        ids, ends = [], set(body["stop_token_ids"])
        for _ in range(min(body["max_tokens"], self.max_model_len - len(row_TH))):
            ids.append(int(self._log_probs(row_TH).argmax()))
            yield ids[-1]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            if ids[-1] in ends or any(stop in text for stop in body["stop"]):
                return
            with torch.no_grad():
                row_TH = torch.cat([row_TH, self.model.get_input_embeddings()(torch.tensor(ids[-1:]))])

    def _pieces(self, row_TH: Tensor, body: dict[str, Any]) -> Any:
        most, self.breaks_stream_after = self.breaks_stream_after or 10**9, 0
        for n, i in enumerate(self._written(row_TH, body)):
            if n >= most:
                raise ConnectionResetError
            yield {"choices": [{"index": 0, "text": "", "token_ids": [i], "finish_reason": None}]}
        yield {"choices": [{"index": 0, "text": "", "token_ids": [], "finish_reason": "stop"}]}


class _Handler(BaseHTTPRequestHandler):
    owner: FakeVLLM
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.owner
        if fake.num_answered >= fake.dies_after:
            return self._break()
        if self.path == "/health":
            return self._send(200 if fake.is_healthy else 503, {})
        if self.path == "/version" and fake.version:
            return self._send(200, {"version": fake.version})
        if self.path != "/v1/models":
            return self._send(404, {"detail": "Not Found"})
        if not self._is_known():
            return self._send(401, {"error": "Unauthorized"})
        listed = [{"id": name, "max_model_len": fake.max_model_len} for name in fake.names]
        return self._send(200, {"data": listed})

    def do_POST(self) -> None:
        fake = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake._lock:
            fake.asked.append((self.path, body))
            fake.num_at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.num_at_once)
            is_dead = fake.num_answered >= fake.dies_after
            failure = fake.failures.popleft() if fake.failures else None
            fake.num_answered += not is_dead and failure is None
        try:
            time.sleep(fake.delay)
            if is_dead or failure == 0:
                self._break()
            elif failure is not None:
                self._send(failure, {"error": {"message": "Internal server error", "code": failure}})
            elif not self._is_known():
                self._send(401, {"error": "Unauthorized"})
            else:
                self._answer(body)
        finally:
            with fake._lock:
                fake.num_at_once -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        try:
            answer = self.owner.answer(self.path, body)
        except _RefusalError as refusal:
            told = {"message": refusal.message, "type": "BadRequestError", "param": None, "code": refusal.status}
            return self._send(refusal.status, {"error": told})
        if isinstance(answer, dict):
            return self._send(200, answer)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in answer:
                self._chunk(f"data: {json.dumps(piece)}\n\n")
        except ConnectionResetError:
            return self._break()
        self._chunk("data: [DONE]\n\n")
        self._chunk("")
        return None

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _is_known(self) -> bool:
        return self.owner.api_key is None or self.headers["Authorization"] == f"Bearer {self.owner.api_key}"

    def _break(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _loaded(data: str) -> Tensor:
    found: Tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)
    assert found.ndim == 2
    assert type(found) is Tensor
    assert found.untyped_storage().nbytes() == found.numel() * found.element_size()  # not a view's
    return found


def _listed(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _is_probe(body: dict[str, Any]) -> bool:
    return len(body.get("logprob_token_ids", ())) > 8 and "allowed_token_ids" not in body
