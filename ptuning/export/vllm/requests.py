"""The bodies of requests to vLLM, and what is read from its answers.

Penalties are always switched off by name: a server may take some from the model's generation settings, and penalties
with embeddings end vLLM's engine (its issue 57719). `echo` and `prompt_logprobs` do not go with embeddings and are
never sent. Knows nothing of rows, prompts or connections.
"""

from collections.abc import Sequence
from typing import Any

from ptuning.errors import ServerError

_GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_MOST_STOPS = 4  # that vLLM takes; the client itself ends at all of them
_MOST_LOGPROBS = 20  # vLLM's limit, unless it is started with another
_ID = "token_id:"  # before an id in an answer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def scoring(payloads: Sequence[str], ids: Sequence[int], are_all: bool) -> dict[str, Any]:
    """Asks for the log-probabilities of ids after each payload.

    Args:
        payloads: Embedded rows.
        ids: The token ids.
        are_all: Whether no other token may be chosen. That changes no log-probability, unless the server gives those
            from after the choice was limited; so it is not asked for where log-probabilities are summed.
    """
    return {**_one_token(ids, are_all), "logprobs": min(len(ids), _MOST_LOGPROBS), "prompt_embeds": list(payloads)}


def chat_scoring(ids: Sequence[int]) -> dict[str, Any]:
    """The same after a conversation, in which only the virtual tokens are embedded; `messages` are added."""
    return {**_one_token(ids, are_all=True), "logprobs": True, "return_token_ids": True}


def writing(
    max_new_tokens: int, end_ids: Sequence[int], stop_strings: Sequence[str], is_streamed: bool
) -> dict[str, Any]:
    """Asks for an answer's tokens; the prompt is added as `prompt_embeds` or `messages`."""
    return {
        **_GREEDY,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(end_ids),
        "stop": list(stop_strings[:_MOST_STOPS]),
        "return_token_ids": True,
        "stream": is_streamed,
    }


def _one_token(ids: Sequence[int], are_all: bool) -> dict[str, Any]:
    body = {**_GREEDY, "max_tokens": 1, "logprob_token_ids": list(ids), "return_tokens_as_token_ids": True}
    return {**body, "allowed_token_ids": list(ids)} if are_all else body


def read_log_probs(answer: Any, ids: Sequence[int], num_prompts: int = 1) -> list[dict[int, float]]:
    """Token id -> log-probability, for each of a request's prompts.

    Raises:
        ServerError: Where the server did not give them.
    """
    found = []
    for choice in sorted(answer.get("choices") or (), key=lambda each: int(each["index"])):
        told = choice.get("logprobs") or {}
        if "content" in told:  # of a chat
            first = told["content"][0]["top_logprobs"] if told["content"] else []
            own = {each["token"]: each["logprob"] for each in first}
        else:
            own = (told.get("top_logprobs") or [{}])[0]
        if any(f"{_ID}{i}" not in own for i in ids):
            raise ServerError(
                f"an answer with the log-probabilities of {len(own)} tokens, not of the {len(ids)} that were asked for",
                "a server that takes `logprob_token_ids`",
                "Upgrade vLLM",
            )
        found.append({i: float(own[f"{_ID}{i}"]) for i in ids})
    if len(found) != num_prompts:
        raise ServerError(f"{len(found)} answers to {num_prompts} prompts", "one for each", "Upgrade vLLM")
    return found


def read_choice(answer: Any) -> dict[str, Any] | None:
    """The only choice of an answer, or of a piece of it; None for a piece without one."""
    choices = answer.get("choices")
    return choices[0] if choices else None


def is_last(piece: Any) -> bool:
    """Whether no text follows this piece of a streamed answer."""
    choice = read_choice(piece)
    return choice is not None and choice.get("finish_reason") is not None


def read_ids(choice: dict[str, Any]) -> list[int]:
    """The tokens that were written; raises `ServerError` where the server did not give them."""
    ids: list[int] | None = choice.get("token_ids")
    if ids is None:
        raise ServerError("an answer without token ids", "a server that takes `return_token_ids`", "Upgrade vLLM")
    return ids
