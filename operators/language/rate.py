"""So many units a minute: a token bucket that tasks of one event loop wait at, first come, first served."""

from __future__ import annotations

import asyncio
import time

_LONGEST_NAP = 0.25
"""Seconds. Units that come back shorten a wait, so nobody sleeps through it."""


class Rate:
    """At most ``per_minute`` units a minute, spread evenly; None: no limit.

    One second's worth can be saved up (one unit at least), so any 60 seconds see at most 61 seconds' worth, and what
    the last of them was larger than that. Who takes more than can be saved up goes into debt, and the next one
    waits until it is paid off.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._second = None if per_minute is None else per_minute / 60
        self._saved = self._most = max(self._second or 0.0, 1.0)
        self._at = time.monotonic()
        self._turn = asyncio.Lock()

    async def take(self, units: float) -> None:
        """Waits until the units may be used."""
        if self._second is None:
            return
        async with self._turn:
            while (missing := min(units, self._most) - self._level(self._second)) > 0:
                await asyncio.sleep(min(missing / self._second, _LONGEST_NAP))
            self._saved -= units

    def give_back(self, units: float) -> None:
        """What was taken and not used; negative: what was used and not taken."""
        if self._second is not None:
            self._saved = min(self._most, self._level(self._second) + units)

    def _level(self, second: float) -> float:
        now = time.monotonic()
        self._saved = min(self._most, self._saved + (now - self._at) * second)
        self._at = now
        return self._saved
