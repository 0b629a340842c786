"""Servers that answer for one model: who gets the next request, who is left out for a while, and whether any is up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

SICK_AFTER = 3
"""Failures in a row, after which an endpoint is left out."""
FIRST_BREAK = 1.0
LONGEST_BREAK = 60.0
_NAP = 0.05


class FleetDown(RuntimeError):
    """No endpoint has answered for as long as the engine has patience."""


@dataclass
class Endpoint:
    """One base URL. ``failures`` and ``breaks``: in a row; ``paused_until``: what it asked for by Retry-After.

    ``met``: it said what it serves, and has not been away since: whoever was away may come back as somebody else.
    """

    url: str
    in_flight: int = 0
    failures: int = 0
    breaks: int = 0
    out_until: float = 0.0
    paused_until: float = 0.0
    error: str = ""
    met: bool = True

    def usable(self, now: float) -> bool:
        """One that was left out comes back with one request at a time, until one succeeds."""
        rested = now >= max(self.out_until, self.paused_until)
        return rested and (self.failures < SICK_AFTER or self.in_flight == 0)


class Fleet:
    """Spreads requests by least in flight. Used from one event loop alone; times are monotonic seconds."""

    def __init__(self, urls: Sequence[str], patience_seconds: float, unmet: Sequence[str] = ()) -> None:
        self.endpoints = [Endpoint(url) for url in urls]
        for one in self.endpoints:
            if one.url in unmet:
                one.met, one.failures = False, SICK_AFTER
        self.patience_seconds = patience_seconds
        self.last_good = 0.0
        self._turn = 0

    async def ready(self, since: float) -> None:
        """Waits until an endpoint can be used. Raises FleetDown where none answered for the whole patience."""
        self.check(since)
        while not any(one.usable(time.monotonic()) for one in self.endpoints):
            await asyncio.sleep(_NAP)
            self.check(since)

    def check(self, since: float) -> None:
        """Raises FleetDown where there was no answer since ``since``, and that is longer ago than the patience."""
        if time.monotonic() - max(since, self.last_good) > self.patience_seconds:
            told = "; ".join(f"{one.url}: {one.error or 'no answer'}" for one in self.endpoints)
            raise FleetDown(
                f"engine openai: no endpoint answered for {self.patience_seconds:.0f} s ({told}); bring the servers "
                "up and start the same command again: what was answered is kept"
            )

    def take(self, avoid: Endpoint | None = None) -> Endpoint | None:
        """The usable endpoint with the fewest requests in flight, another than ``avoid`` where there is one."""
        now = time.monotonic()
        usable = [one for one in self.endpoints if one.usable(now)]
        usable = [one for one in usable if one is not avoid] or usable
        if not usable:
            return None
        self._turn += 1
        fewest = min(one.in_flight for one in usable)
        equal = [one for one in usable if one.in_flight == fewest]
        chosen = equal[self._turn % len(equal)]
        chosen.in_flight += 1
        return chosen

    def good(self, endpoint: Endpoint) -> None:
        """It answered as it should."""
        endpoint.failures = endpoint.breaks = 0
        endpoint.out_until, endpoint.error = 0.0, ""
        self.last_good = time.monotonic()

    def busy(self, endpoint: Endpoint, error: str, pause_seconds: float | None) -> None:
        """It answers, and wants fewer requests: for so long, if it said so."""
        endpoint.error = error
        if pause_seconds is not None:
            endpoint.paused_until = max(endpoint.paused_until, time.monotonic() + pause_seconds)

    def bad(self, endpoint: Endpoint, error: str) -> None:
        """It did not answer, or not as it should. Requests that fail while it is left out already count once."""
        now = time.monotonic()
        endpoint.error = error
        if now < endpoint.out_until:
            return
        endpoint.failures += 1
        if endpoint.failures >= SICK_AFTER:
            longest = min(LONGEST_BREAK, FIRST_BREAK * 2**endpoint.breaks, max(0.05, self.patience_seconds / 4))
            endpoint.out_until = now + longest * random.uniform(0.5, 1.0)
            endpoint.breaks = min(endpoint.breaks + 1, 16)
            endpoint.met = False

    def leave_out(self, endpoint: Endpoint, error: str) -> None:
        """It does not serve what was agreed on: it is asked again when the longest break is over."""
        endpoint.error, endpoint.met = error, False
        endpoint.failures = max(endpoint.failures, SICK_AFTER)
        endpoint.out_until = time.monotonic() + LONGEST_BREAK
