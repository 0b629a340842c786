"""Requests to a fleet until each has its answer: what passes is retried, a row's fault is told from the fleet's.

Everything here runs in one event loop. A task is either on the wire, where it may be paid for, or it waits (for a rate,
an endpoint, the end of a break), where a drain ends it without loss.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

import httpx

from operators.language.choose import OPENAI, EngineError
from operators.language.engine import EngineSettings
from operators.language.fleet import Endpoint, Fleet, FleetDown
from operators.language.openai_api import (
    BadAnswer,
    Key,
    complaint,
    json_of,
    remedy_for_key,
    retry_after,
    says_too_long,
)
from operators.language.rate import Rate
from operators.language.served import Unreachable, stranger

PASSING: Final = frozenset({408, 409, 425, 429})
"""Besides 5xx: faults that pass."""
BUSY: Final = frozenset({408, 425, 429})
TRIAL_TOKENS: Final = 100
T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], T]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of waits, in seconds. ``attempts``: faulty answers to one request, after which it is asked whose fault it is."""

    connect: float = 10.0
    first_break: float = 0.5
    longest_break: float = 30.0
    attempts: int = 8
    drain: float = 90.0


class RowRefused(ValueError):
    """One request that cannot be done, whoever is asked."""


class _Fate(Enum):
    ANSWERED = "answered"
    FAULT = "fault"
    """It failed and may have been paid for: another attempt may do better."""
    AWAY = "away"
    """It was not taken: no connection, or the server is busy."""
    REFUSED = "refused"
    """The server understood it and will not do it."""


@dataclass(frozen=True, slots=True)
class _Sent(Generic[T]):
    fate: _Fate
    result: T | None = None
    why: str = ""


class Client:
    """``spent``: requests sent, retries, answers, answers lost. Make it inside the loop that it runs in."""

    def __init__(self, settings: EngineSettings, key: Key, limits: Limits) -> None:
        self.settings, self.limits, self.spent = settings, limits, Counter[str]()
        self._key = key
        self._fleet = Fleet(settings.urls, settings.patience_seconds, settings.unmet)
        self._requests = Rate(settings.requests_per_minute)
        self.tokens = Rate(settings.tokens_per_minute)
        self._trying = asyncio.Lock()
        self._draining = False
        self._waiting: set[asyncio.Task[Any]] = set()
        most = settings.max_in_flight + 1
        self._http = httpx.AsyncClient(
            headers={"Content-Type": "application/json", **key.headers()},
            timeout=httpx.Timeout(settings.request_seconds, connect=limits.connect),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
        )

    def drain(self) -> None:
        """Nothing is sent any more; who waits to send is cancelled."""
        self._draining = True
        for task in list(self._waiting):
            task.cancel()

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, path: str, body: bytes, tokens: int, read: Read[T], trial: bytes) -> T:
        """The answer to ``body``, as ``read`` makes it (it raises BadAnswer). ``tokens``: the most it may take.

        ``trial``: the body of a harmless, short request. Where this one is refused or fails too often, and no other
        was answered, the trial shows whose fault it is. Raises RowRefused, EngineError (all requests are
        refused), FleetDown, CancelledError (drained).
        """
        began, faults, attempt = time.monotonic(), 0, 0
        endpoint: Endpoint | None = None
        sent: _Sent[T] = _Sent(_Fate.FAULT)
        while True:
            if attempt:
                await self._break(attempt)
            endpoint, waited = await self._slot(began, tokens, endpoint)
            began += waited
            attempt += 1
            self.spent["retries"] += attempt > 1
            sent = await self._send(endpoint, path, body, tokens, read)
            if sent.fate is _Fate.ANSWERED:
                return sent.result  # type: ignore[return-value]  # an answer has a result
            if sent.fate is _Fate.REFUSED:
                if trouble := await self._trial(0.0, trial):
                    raise EngineError(f"engine {OPENAI}: {endpoint.url}: it refuses every request ({trouble})")
                raise RowRefused(sent.why)
            faults += sent.fate is _Fate.FAULT
            late = time.monotonic() - began > self.settings.patience_seconds
            if faults >= self.limits.attempts or (faults > 1 and late):
                if trouble := await self._trial(began, trial):
                    raise FleetDown(f"engine {OPENAI}: {endpoint.url}: no request is answered ({trouble})")
                raise RowRefused(f"given up after {attempt} attempts: {sent.why}")

    async def _trial(self, since: float, body: bytes) -> str:
        """Empty where any request was answered since then, or the trial is; else why not."""
        async with self._trying:
            sent: _Sent[Mapping[str, Any]] = _Sent(_Fate.FAULT)
            for attempt in range(3):
                if self._fleet.last_good > since:
                    return ""
                if attempt:
                    await self._break(attempt)
                endpoint, _ = await self._slot(time.monotonic(), TRIAL_TOKENS, None)
                sent = await self._send(endpoint, "chat/completions", body, TRIAL_TOKENS, lambda held: held)
                if sent.fate is _Fate.REFUSED:
                    break
            return "" if sent.fate is _Fate.ANSWERED else sent.why

    async def _break(self, attempt: int) -> None:
        """Before another attempt: twice as long as the last time, and nobody in step with the others."""
        longest = min(self.limits.longest_break, self.limits.first_break * 2 ** min(attempt - 1, 16))
        with self._off_the_wire():
            await asyncio.sleep(random.uniform(0, longest))

    async def _slot(self, began: float, tokens: int, avoid: Endpoint | None) -> tuple[Endpoint, float]:
        """An endpoint that can be used now, with the rates' leave; and the seconds that the rates took."""
        waited = 0.0
        with self._off_the_wire():
            while True:
                await self._fleet.ready(began + waited)
                asked = time.monotonic()
                await self._requests.take(1)
                await self.tokens.take(tokens)
                waited += time.monotonic() - asked
                if (endpoint := self._fleet.take(avoid)) is not None:
                    return endpoint, waited
                self._requests.give_back(1)
                self.tokens.give_back(tokens)

    async def _send(self, endpoint: Endpoint, path: str, body: bytes, tokens: int, read: Read[T]) -> _Sent[T]:
        """One request. Raises EngineError where the endpoint refuses the key or has no such path."""
        if not endpoint.met and (told := await self._stranger(endpoint)):
            self.tokens.give_back(tokens)
            return _Sent(_Fate.AWAY, None, told)
        self.spent["requests sent"] += 1
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                response = await self._http.post(f"{endpoint.url}/{path}", content=body)
        except (httpx.RequestError, TimeoutError) as error:
            unreached = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            return self._failed(endpoint, f"{type(error).__name__}: {error or 'no answer in time'}", tokens, unreached)
        except asyncio.CancelledError:  # a drain's limit, or the end: the server may have been at it
            self.spent["answers lost"] += 1
            raise
        finally:
            endpoint.in_flight -= 1
        if response.status_code != 200:
            self.tokens.give_back(tokens)
            return self._not_ok(endpoint, path, response)
        try:
            result = read(json_of(response.content, response.headers.get("content-type", "")))
        except BadAnswer as bad:
            return self._failed(endpoint, str(bad), tokens, unreached=False)
        self.spent["answers"] += 1
        self._fleet.good(endpoint)
        return _Sent(_Fate.ANSWERED, result)

    async def _stranger(self, endpoint: Endpoint) -> str:
        """Why an endpoint that was away gets no request: it is away still, or is not what was agreed on."""
        told, error = "", ""
        try:
            told = await asyncio.to_thread(stranger, self.settings, endpoint.url, self._key)
        except Unreachable as away:
            error = str(away)
        finally:
            endpoint.in_flight -= 1
        if error:
            self._fleet.bad(endpoint, endpoint.error or error)
        elif told:
            self.spent["other models refused"] += 1
            self._fleet.leave_out(endpoint, told)
        elif self._draining:
            raise asyncio.CancelledError
        else:
            endpoint.met = True
            endpoint.in_flight += 1
        return told or error

    def _failed(self, endpoint: Endpoint, why: str, tokens: int, unreached: bool) -> _Sent[T]:
        told = self._key.scrubbed(why)
        self._fleet.bad(endpoint, told)
        if unreached:
            self.tokens.give_back(tokens)
            return _Sent(_Fate.AWAY, None, told)
        self.spent["answers lost"] += 1
        return _Sent(_Fate.FAULT, None, told)

    def _not_ok(self, endpoint: Endpoint, path: str, response: httpx.Response) -> _Sent[T]:
        status = response.status_code
        said = self._key.scrubbed(complaint(response.content)) or response.reason_phrase
        told = f"status {status}: {said}"
        if status in PASSING or status >= 500:
            pause = retry_after(response.headers.get("retry-after"))
            if status in BUSY or pause is not None:
                self._fleet.busy(endpoint, told, pause)
                return _Sent(_Fate.AWAY, None, told)
            self._fleet.bad(endpoint, told)
            return _Sent(_Fate.FAULT, None, told)
        if status in (401, 403):
            raise EngineError(f"engine {OPENAI}: {endpoint.url}: {told}; {remedy_for_key(self._key)}")
        if status == 404 and len(self._fleet.endpoints) > 1:
            self._fleet.leave_out(endpoint, told)  # the others go on; before it comes back it is asked what it serves
            return _Sent(_Fate.AWAY, None, told)
        if status == 404 or status < 400:
            raise EngineError(
                f"engine {OPENAI}: {endpoint.url}: {told} at /{path}; is the base URL right (it often ends in /v1), "
                f"and is {self.settings.served_model!r} still served there?"
            )
        if status == 413 or says_too_long(said):
            raise RowRefused(f"the prompt is too long for the server: {said}")
        return _Sent(_Fate.REFUSED, None, told)

    @contextmanager
    def _off_the_wire(self) -> Iterator[None]:
        task = asyncio.current_task()
        if self._draining or task is None:
            raise asyncio.CancelledError
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)
