"""What the servers of a fleet say they serve (``/models``), and whether that fits: asked before a run starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import httpx

from operators.language.choose import OPENAI, EngineError
from operators.language.engine import EngineSettings
from operators.language.openai_api import BadAnswer, Key, complaint, json_of, remedy_for_key

ASK_SECONDS: Final = 10.0
"""For one server, whatever it does."""
_LARGEST: Final = 10_000_000
"""Bytes of a list of models."""
_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Served:
    """One model of one server. ``root``: what it was loaded from; ``context``: 0 where the server does not say."""

    name: str
    root: str
    context: int


class Unreachable(EngineError):
    """A server did not answer, or not with a list of models."""


def agreed(settings: EngineSettings, longest: int) -> tuple[EngineSettings, list[str]]:
    """The settings with what the servers serve filled in, and a line for each server that does not answer.

    ``longest``: tokens of the longest prompt and completion together. A server that does not answer is left to the
    engine, which asks it what it serves once it does, as long as another one works. Raises EngineError, one line.
    """
    key = Key.from_environment()
    with ThreadPoolExecutor(min(_AT_ONCE, len(settings.urls))) as pool:
        answers = list(pool.map(lambda url: _asked(url, key), settings.urls))
    silent = [one for one in answers if isinstance(one, Unreachable)]
    if len(silent) == len(answers):
        raise silent[0]
    lists = {url: one for url, one in zip(settings.urls, answers, strict=True) if not isinstance(one, Unreachable)}
    models = {url: _chosen(url, settings.served_model, held) for url, held in lists.items()}
    first_url, first = next(iter(models.items()))
    for url, one in models.items():
        if (one.name, one.root) != (first.name, first.root):
            raise EngineError(
                f"engine {OPENAI}: {url} serves {_told(one)} and {first_url} serves {_told(first)}; a fleet has to "
                "serve one model under one name"
            )
    context, tightest = min(((one.context or settings.max_model_len), url) for url, one in models.items())
    if context < longest:
        raise EngineError(
            f"engine {OPENAI}: {tightest} takes {context} tokens, prompt and answer together, and up to {longest} are "
            "wanted; lower --piece-tokens or --max-new-tokens, or serve it with a longer context"
        )
    found = {"served_model": first.name, "served_root": first.root}
    away = tuple(url for url in settings.urls if url not in lists)
    found_all = {**found, "max_model_len": min(context, settings.max_model_len), "unmet": away}
    return settings.model_copy(update=found_all), [str(one) for one in silent]


def stranger(settings: EngineSettings, url: str, key: Key) -> str:
    """Why a server that came, or came back, in the middle of a run gets no requests; empty where it is as agreed.

    Raises Unreachable.
    """
    try:
        answer = _asked(url, key)
        if not isinstance(answer, Unreachable):
            one = _chosen(url, settings.served_model, answer)
    except EngineError as error:
        return str(error)
    if isinstance(answer, Unreachable):
        raise answer
    if settings.served_root and one.root != settings.served_root:
        agreed_on = Served(settings.served_model, settings.served_root, 0)
        return f"it serves {_told(one)}, and the others {_told(agreed_on)}"
    if one.context and one.context < settings.max_model_len:
        return f"it takes {one.context} tokens, and the others {settings.max_model_len}"
    return ""


def _asked(url: str, key: Key) -> list[Served] | Unreachable:
    """The models of one server. Raises EngineError where it refuses the key or has no such list."""
    where = f"engine {OPENAI}: {url}"
    deadline = time.monotonic() + ASK_SECONDS
    body = bytearray()
    try:
        with (
            httpx.Client(timeout=ASK_SECONDS) as client,
            client.stream("GET", f"{url}/models", headers=key.headers()) as response,
        ):
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > deadline or len(body) > _LARGEST:
                    return Unreachable(f"{where}: its list of models did not end within {ASK_SECONDS:.0f} s")
    except httpx.RequestError as error:
        why = key.scrubbed(str(error)) or "no answer"
        return Unreachable(
            f"{where}: cannot be reached within {ASK_SECONDS:.0f} s ({type(error).__name__}: {why}); is the server up, "
            "and the URL right?"
        )
    status = response.status_code
    said = key.scrubbed(complaint(bytes(body))) or response.reason_phrase
    if status in (401, 403):
        raise EngineError(f"{where}: status {status}: {said}; {remedy_for_key(key)}")
    if status >= 500 or status == 429:
        return Unreachable(f"{where}: status {status}: {said}; is the server still starting?")
    if status != 200:
        raise EngineError(f"{where}: status {status} at /models ({said}); is that the base URL? It often ends in /v1")
    try:
        held = json_of(bytes(body), response.headers.get("content-type", "")).get("data")
    except BadAnswer as error:
        return Unreachable(f"{where}: {error}; is that the base URL? It often ends in /v1")
    entries = [one for one in held if isinstance(one, dict)] if isinstance(held, list) else []
    return [_read(one) for one in entries if isinstance(one.get("id"), str)]


def _read(entry: Mapping[str, Any]) -> Served:
    """A root that is a path is another one on another machine: its last part alone stands for it."""
    root, context = entry.get("root"), entry.get("max_model_len")
    name = root.rstrip("/").rpartition("/")[2] if isinstance(root, str) and root.startswith("/") else root
    return Served(entry["id"], name if isinstance(name, str) else "", context if isinstance(context, int) else 0)


def _chosen(url: str, wanted: str, held: list[Served]) -> Served:
    names = ", ".join(sorted(one.name for one in held)[:10]) or "nothing"
    if wanted:
        for one in held:
            if one.name == wanted:
                return one
        raise EngineError(f"engine {OPENAI}: {url} does not serve {wanted!r}; it serves {names}: set --engine-model")
    if len(held) == 1:
        return held[0]
    raise EngineError(f"engine {OPENAI}: {url} serves {names}; name the one to use by --engine-model")


def _told(one: Served) -> str:
    return f"{one.name} ({one.root})" if one.root else one.name
