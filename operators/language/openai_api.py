"""What goes over the wire to a server that speaks OpenAI's API, and what may come back: no network here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from operators.language.chat import finished_text
from operators.language.choose import OPENAI, EngineError
from operators.language.engine import FinishReason, Request, Sampling
from operators.language.keys import KEY_VARIABLES

_TOO_LONG: Final = (
    "context_length",
    "context length",
    "maximum context",
    "too long",
    "too many tokens",
    "max_model_len",
)
_STOPPED: Final = {"stop": FinishReason.STOP, "eos_token": FinishReason.STOP, "stop_sequence": FinishReason.STOP}
_ENDED: Final = {**_STOPPED, "length": FinishReason.LENGTH}


class BadAnswer(ValueError):
    """A body that is no answer: cut off, no JSON, nothing in it. The request may have been paid for."""


class Key:
    """The API key, which no repr, error or log shows."""

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def from_environment(cls) -> Key:
        """Empty where neither variable is set. Raises EngineError where it could not be sent."""
        name = next((one for one in KEY_VARIABLES if os.environ.get(one, "").strip()), "")
        value = os.environ.get(name, "").strip()
        if not value.isascii() or any(not one.isprintable() or one == " " for one in value):
            raise EngineError(f"engine {OPENAI}: ${name} holds blanks or characters that no key has; set it anew")
        return cls(value)

    @property
    def known(self) -> bool:
        return bool(self._value)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def scrubbed(self, text: str) -> str:
        """What a server said, on one line and without the key: some repeat it."""
        line = " ".join(text.split())
        return (line.replace(self._value, "[key]") if self._value else line)[:300]

    def __repr__(self) -> str:
        return "Key(set)" if self._value else "Key(none)"


def base_urls(given: str | None) -> tuple[str, ...]:
    """The base URLs of a fleet from a comma-separated list, each once. Raises EngineError; never repeats a password."""
    urls = [one.strip().rstrip("/") for one in (given or "").split(",") if one.strip()]
    if not urls:
        raise EngineError(f"engine {OPENAI}: no URL; give --engine-url, such as http://host:8000/v1")
    for url in urls:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise EngineError(f"engine {OPENAI}: one of the URLs is none; write http://host:8000/v1") from error
        if "@" in url:
            where = (f"{host}:{port}" if port else host) or "the server"
            raise EngineError(
                f"engine {OPENAI}: the URL of {where} holds a user name or password; take it out, and give a key by "
                f"${KEY_VARIABLES[0]}"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise EngineError(f"engine {OPENAI}: {url.partition('?')[0]} is no base URL; write http://host:8000/v1")
        if parts.query or parts.fragment:
            raise EngineError(
                f"engine {OPENAI}: the URL of {host} has a query; give the base URL alone, and a key by "
                f"${KEY_VARIABLES[0]}"
            )
    return tuple(dict.fromkeys(urls))


def chat_body(model: str, request: Request, sampling: Sampling, max_tokens: int) -> bytes:
    """The body of /chat/completions. Raises ValueError for text that is no Unicode."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.temperature > 0:
        body["seed"] = request.seed & (2**63 - 1)
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    try:
        return orjson.dumps(body)
    except TypeError as error:  # orjson's: lone surrogates
        raise ValueError(f"the request cannot be sent: {error}; is its text valid Unicode?") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Tokens are None where the server does not count them; ``error``: paid for, and of no use."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    completion_tokens: int | None
    error: str = ""


def json_of(body: bytes, content_type: str) -> dict[str, Any]:
    """The object in a body. Raises BadAnswer, which says what came in its place."""
    if "json" not in content_type.lower():
        raise BadAnswer(f"it answered {content_type.partition(';')[0].strip() or 'no content type'} in place of JSON")
    try:
        held = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"its JSON ends or breaks after {len(body)} bytes") from error
    if not isinstance(held, dict):
        raise BadAnswer("its JSON is no object")
    return held


def chat_answer(held: Mapping[str, Any]) -> Answer:
    """Reads the body of /chat/completions. Raises BadAnswer where there is none in it, or only a part."""
    choice = _choice(held)
    message = choice.get("message")
    reason = choice.get("finish_reason")
    if not isinstance(message, dict) or not isinstance(reason, str):
        raise BadAnswer("its answer was not finished (no message or no finish_reason)")
    prompt_tokens, completion_tokens = usage(held)
    text = message.get("content")
    if reason == "abort":  # vLLM's, of a server that ends: another one may do it
        raise BadAnswer("the server broke its answer off")
    if reason in _ENDED and isinstance(text, str):
        ended = _ENDED[reason]
        return Answer(finished_text(text, ended), ended, prompt_tokens, completion_tokens)
    if reason == "content_filter":
        error = "the server's content filter withheld the answer"
    elif reason not in _ENDED:
        error = f"the server ended the request with {reason[:40]!r}"
    elif message.get("refusal"):
        error = "the model refused to answer"
    elif reason == "length":
        error = "the model used up all of its tokens before the answer began; raise max_new_tokens"
    else:
        error = "the server's answer has no text"
    return Answer("", FinishReason.ERROR, prompt_tokens, completion_tokens, error)


def prompt_log_probs(held: Mapping[str, Any], tokens: list[int]) -> list[float | None]:
    """Log-probability of each prompt token from the body of /completions, asked with prompt_logprobs or with echo.

    The first is None. Raises BadAnswer, and LookupError where the server gave none, or those of other tokens.
    """
    choice = _choice(held)
    by_place = choice.get("prompt_logprobs")
    if isinstance(by_place, list) and len(by_place) == len(tokens):
        try:
            return [
                None if at is None else float(at[str(t)]["logprob"]) for t, at in zip(tokens, by_place, strict=True)
            ]
        except (KeyError, TypeError) as error:
            raise LookupError("it scores other tokens than it was given; is the model's tokenizer this one?") from error
    echoed = choice.get("logprobs")
    values = echoed.get("token_logprobs") if isinstance(echoed, dict) else None
    if isinstance(values, list) and len(values) >= len(tokens) and None not in values[1 : len(tokens)]:
        return [None if one is None else float(one) for one in values[: len(tokens)]]
    raise LookupError("it gives no log-probabilities of a prompt")


def usage(held: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of prompt and completion that the server counted, and charges."""
    told = held.get("usage")
    counts = (
        [told.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(told, dict) else [None] * 2
    )
    prompt, completion = (one if isinstance(one, int) and one >= 0 else None for one in counts)
    return prompt, completion


def complaint(body: bytes) -> str:
    """What an error response says, "" where it is no JSON (a proxy's page)."""
    try:
        held = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    error = held.get("error", held) if isinstance(held, dict) else held
    if isinstance(error, dict):
        code = error.get("code")
        error = error.get("message") or error.get("detail") or ""
        error = f"{error} ({code})" if isinstance(code, str) and code else error
    return str(error)


def remedy_for_key(key: Key) -> str:
    """What to do where a server refuses the key."""
    which = " or $".join(KEY_VARIABLES)
    return f"is the key in ${which} right for this server?" if key.known else f"set its key in ${which}"


def says_too_long(said: str) -> bool:
    return any(one in said.lower() for one in _TOO_LONG)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header: a number, or an HTTP date. None where it says nothing."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _choice(held: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = held.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadAnswer("its answer holds no choices")
    return choices[0]
