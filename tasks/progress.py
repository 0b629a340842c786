"""Where a stage stands: what this run did of it, how fast, and how long it will still take.

The terminal, the log, the metrics and Prefect's artifact all read the same :class:`Progress`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tasks.aligned import Unit
from tasks.records import Record
from tasks.summary import Accounts, Status
from tasks.workers import Effort

SECONDS_BUCKETS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Upper bounds of the histogram of a shard's seconds; what is more has a bucket of its own."""
WINDOW_SECONDS = 30.0
FADE = 0.97
ENOUGH_SHARDS, ENOUGH_SHARE = 2, 0.05
OVERDUE = 0.1
"""A shard that should have ended by now is given a tenth of what it took so far."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything but ``found`` is of this run alone.

    ``total`` shards are ``found`` finished before (or adopted), ``made``, ``failed``, or left. ``rows`` and ``tokens``
    are live counts of the workers (a rewrite's row is one request), ``accounts`` those of the shards made.
    ``seconds`` is wall time. ``eta_seconds`` and the rates are None where they cannot be said.
    ``spent``: what engines elsewhere were asked and paid for. ``moved``: seconds since the epoch of the last sign of
    progress. ``status``: None while the stage runs.
    """

    stage: str
    total: int
    found: int
    made: int = 0
    failed: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    eta_seconds: float | None = None
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    workers: int = 0
    retries: int = 0
    lost: int = 0
    busy_seconds: float = 0.0
    ready_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    accounts: Accounts = field(default_factory=Accounts)
    notes: Mapping[str, int] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)
    shard_seconds: tuple[int, ...] = (0,) * (len(SECONDS_BUCKETS) + 1)
    shard_seconds_sum: float = 0.0
    moved: float = 0.0
    status: Status | None = None

    @property
    def done(self) -> int:
        return self.found + self.made

    @property
    def left(self) -> int:
        return self.total - self.done - self.failed

    @property
    def busy_share(self) -> float | None:
        """Of the workers' time after set-up; None before any was set up."""
        return min(1.0, self.busy_seconds / self.ready_seconds) if self.ready_seconds > 0 else None

    @property
    def ledger_hits(self) -> int:
        """Requests that were answered from the ledger and reached no engine."""
        return max(0, self.notes.get("requests", 0) - self.notes.get("generated", 0))


class Eta:
    """Remaining seconds of work whose pieces have known weights (bytes), from the pace of the pieces done here.

    What was found finished never enters. The pace is weight per second of one place at a worker, the latest pieces
    counting most. Pieces under way are credited with the time they have had, so it falls between completions too.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._left = dict(weights)
        self._all = sum(weights.values())
        self._worked = self._spent = self._done = 0.0
        self._count = 0

    def ended(self, name: str, seconds: float | None = None) -> None:
        """``seconds``: what the piece took; None where it says nothing of the pace: it failed or was adopted."""
        weight = self._left.pop(name, 0.0)
        if seconds is not None and seconds > 0:
            self._worked = self._worked * FADE + weight
            self._spent = self._spent * FADE + seconds
            self._done += weight
            self._count += 1

    def seconds(self, held: Mapping[str, float], places: int) -> float | None:
        """``held``: seconds that each piece under way has had. ``places``: pieces that can be under way at once."""
        if not self._left:
            return 0.0
        enough = self._count >= ENOUGH_SHARDS or self._done >= ENOUGH_SHARE * self._all
        if not self._count or not enough or places < 1 or self._worked <= 0:
            return None
        pace = self._worked / self._spent
        each = [self._piece(weight / pace, held.get(name)) for name, weight in self._left.items()]
        # as long as there is more to do than places, the sum decides; at the end the longest piece does
        return max(sum(each) / places, *each)

    def _piece(self, expected: float, had: float | None) -> float:
        return expected if had is None else max(expected - had, had * OVERDUE)


def weights(units: Iterable[Unit]) -> dict[str, float]:
    """Bytes of each unit's shards; where they are not known of all, every unit counts the same."""
    sizes = {unit.name: float(sum(shard.size for shard in unit.shards)) for unit in units}
    return sizes if all(size > 0 for size in sizes.values()) else dict.fromkeys(sizes, 1.0)


class Meter:
    """Counts what a stage does, shard by shard, and says where it stands."""

    def __init__(
        self,
        stage: str,
        todo: Iterable[Unit],
        total: int,
        found: int,
        failed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.found, self.failed_shards, self._clock = stage, total, found, failed, clock
        units = list(todo)
        self._eta = Eta(weights(units))
        self._bytes = {unit.name: sum(shard.size for shard in unit.shards) for unit in units}
        self._began = clock()
        self._made = self._read = self._written = 0
        self._accounts = Accounts()
        self._notes: Counter[str] = Counter()
        self._seconds = [0] * (len(SECONDS_BUCKETS) + 1)
        self._seconds_sum = 0.0
        self._samples: deque[tuple[float, int, int]] = deque()
        self._seen: tuple[int, ...] = ()
        self._moved = time.time()

    def finished(self, name: str, record: Record) -> None:
        self._notes.update(record.notes)
        if record.adopted:
            self.found += 1
            self._eta.ended(name)
            return
        self._made += 1
        self._read += self._bytes[name]
        self._written += record.bytes
        self._accounts = Accounts.total([self._accounts, record.accounts])
        self._seconds[bisect_left(SECONDS_BUCKETS, record.seconds)] += 1
        self._seconds_sum += record.seconds
        self._eta.ended(name, record.seconds)

    def failed(self, name: str) -> None:
        self.failed_shards += 1
        self._eta.ended(name)

    def progress(self, effort: Effort, status: Status | None = None) -> Progress:
        now = self._clock()
        seen = (self.found, self._made, self.failed_shards, effort.rows, effort.tokens, effort.steps)
        if seen != self._seen:
            self._seen, self._moved = seen, time.time()
        rows, tokens = self._rates(now, effort, ended=status is not None)
        held = {unit.name: now - since for unit, since in effort.held}
        eta = None if effort.draining else self._eta.seconds(held, effort.most)
        return Progress(
            stage=self.stage,
            total=self.total,
            found=self.found,
            made=self._made,
            failed=self.failed_shards,
            rows=effort.rows,
            tokens=effort.tokens,
            seconds=now - self._began,
            eta_seconds=eta if status is None else 0.0,
            rows_per_second=rows,
            tokens_per_second=tokens,
            workers=effort.alive,
            retries=effort.retries,
            lost=effort.lost,
            busy_seconds=effort.busy_seconds,
            ready_seconds=effort.ready_seconds,
            read_bytes=self._read,
            written_bytes=self._written,
            accounts=self._accounts,
            notes=dict(self._notes),
            spent=dict(effort.spent),
            shard_seconds=tuple(self._seconds),
            shard_seconds_sum=self._seconds_sum,
            moved=self._moved,
            status=status,
        )

    def _rates(self, now: float, effort: Effort, ended: bool) -> tuple[float | None, float | None]:
        """Per second over the last half minute; of an ended stage over all of it."""
        if not effort.rows and not effort.tokens:
            self._samples.clear()
            self._samples.append((now, 0, 0))  # loading a model is no slow start
            return None, None
        if ended:
            span = max(now - self._began, 1e-9)
            return effort.rows / span, effort.tokens / span
        self._samples.append((now, effort.rows, effort.tokens))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()
        then, rows, tokens = self._samples[0]
        if now - then < 1.0:
            return None, None
        return (effort.rows - rows) / (now - then), (effort.tokens - tokens) / (now - then)
