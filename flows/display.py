"""Progress of a run for whoever watches: a live line a stage on a terminal, dated lines in a file, events as JSON.

What is said is the same everywhere: how many shards are finished, how long it will still take (once that can be said),
the pace, how busy the workers are, what was quarantined or failed. A run's own time left is never said, because the
stages to come cannot be timed before they begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from tasks import logs, progress
from tasks.report.numbers import NO_BREAK, duration, exact, short
from tasks.summary import Status

FIRST_SECONDS, LONGEST_SECONDS = 5.0, 300.0
"""Between two lines of a stage; each time twice as long."""
NAME_WIDTH, BAR_WIDTH = 24, 10
_MARKS = {Status.DONE: ("✓", "green"), Status.BOUNDED: ("→", "yellow"), Status.FAILED: ("✗", "red")}
_ASCII = str.maketrans({"✓": "+", "→": ">", "✗": "x"})


class StageDisplay:
    """Shows what it is told by ``show``, as the console and ``WINNOW_LOG_FORMAT`` want it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._lines: ProgressLines | None = None
        if logs.as_json():
            self._lines = ProgressLines(_as_event)
        elif not console.is_terminal:
            self._lines = ProgressLines(self._print)
        self._live = Progress(
            _Mark(console),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, width=NAME_WIDTH)),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[shards]}", justify="right", table_column=Column(no_wrap=True)),
            _Detail(table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            refresh_per_second=4,
            disable=self._lines is not None,
        )

    def __enter__(self) -> StageDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, told: progress.Progress) -> None:
        if self._lines is not None:
            self._lines.show(told)
            return
        if told.stage not in self._bars:
            self._bars[told.stage] = self._live.add_task(told.stage, total=1, told=told, shards="", detail="")
        shards = f"{exact(told.done)}/{exact(told.total)}"
        # what a bar leaves beside itself: mark, name, bar, shards and the gaps between
        room = self._console.width - (1 + NAME_WIDTH + BAR_WIDTH + max(len(shards), 5) + 4)
        self._live.update(
            self._bars[told.stage],
            completed=told.done + told.failed if told.total else 1,
            total=told.total or 1,
            shards=shards,
            told=told,
            detail=fitting(parts(told), room),
        )

    def _print(self, line: str, told: progress.Progress) -> None:
        # soft_wrap: a line of a log is one line, however wide the terminal is said to be
        self._console.print(
            f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {line}", highlight=False, markup=False, soft_wrap=True
        )


class ProgressLines:
    """Lines of a stage's progress at rising intervals: its beginning, where it stands, and always how it ended."""

    def __init__(
        self, write: Callable[[str, progress.Progress], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._next: dict[str, tuple[float, float]] = {}

    def show(self, told: progress.Progress) -> None:
        now = self._clock()
        if told.status is not None:
            self._write(f"{told.stage}: {'; '.join([ending(told), *parts(told)])}", told)
        elif told.stage not in self._next:
            self._next[told.stage] = (now + FIRST_SECONDS, FIRST_SECONDS * 2)
            if told.left:
                found = f", {exact(told.found)} found finished" if told.found else ""
                todo = "1 shard" if told.left == 1 else f"{exact(told.left)} shards"
                self._write(f"{told.stage}: {todo} to do{found}", told)
        elif now >= self._next[told.stage][0]:
            wait = self._next[told.stage][1]
            self._next[told.stage] = (now + wait, min(wait * 2, LONGEST_SECONDS))
            shards = f"{exact(told.done)}/{exact(told.total)} shards"
            self._write(f"{told.stage}: {'; '.join([shards, *parts(told)])}", told)


def parts(told: progress.Progress) -> list[str]:
    """What there is to say of a stage beside its shards, the most important first."""
    said: list[str] = []
    if told.status is not None:
        said.append(f"{exact(told.accounts.rows_in)} rows in {duration(told.seconds)}" if told.made else "")
    elif told.eta_seconds is not None and told.left:
        said.append(f"{duration(max(1.0, told.eta_seconds))} left")
    elif not told.workers:
        said.append("starting workers")
    else:
        said.append(f"{duration(told.seconds)} so far")
    pace = ""
    if told.tokens_per_second:
        pace = f"{short(told.tokens_per_second)} tokens/s"
    elif told.rows_per_second:
        pace = f"{short(told.rows_per_second)} rows/s"
    said.append(pace if told.status is None else "")
    for count, what in (
        (told.failed if told.status is None else 0, "failed"),
        (told.accounts.quarantined, "quarantined"),
        (told.lost, "worker lost" if told.lost == 1 else "workers lost"),
        (told.retries, "retry" if told.retries == 1 else "retries"),
    ):
        said.append(f"{exact(count)} {what}" if count else "")
    said.append("" if told.status is None else pace)
    # rounded down: a worker that waits now and then is not busy all the time
    said.append(f"{int(100 * told.busy_share)}% busy" if told.busy_share is not None else "")
    return [one.replace(NO_BREAK, " ") for one in said if one]


def ending(told: progress.Progress) -> str:
    """How a stage ended, by shards."""
    counts = ((told.made, "made"), (told.found, "found"), (told.failed, "failed"), (told.left, "left"))
    shards = ", ".join(f"{exact(count)} {what}" for count, what in counts if count) or "no shards"
    return f"{told.status.value if told.status else 'running'}: {shards}"


def fitting(said: list[str], room: int) -> str:
    """As many of the parts as fit, whole: the first ones matter most."""
    kept = ""
    for one in said:
        longer = f"{kept}, {one}" if kept else one
        if len(longer) > room:
            break
        kept = longer
    return kept


def _as_event(line: str, told: progress.Progress) -> None:
    """Its beginning and its end have events of their own."""
    if told.status is None and (told.made or told.rows or told.seconds >= FIRST_SECONDS):
        logs.event(
            "progress",
            line,
            stage=told.stage,
            shards=told.total,
            shards_made=told.made,
            shards_found=told.found,
            shards_failed=told.failed,
            rows=told.rows,
            tokens=told.tokens,
            rows_per_second=_rounded(told.rows_per_second, 1),
            tokens_per_second=_rounded(told.tokens_per_second, 1),
            eta_seconds=_rounded(told.eta_seconds, 0),
            busy_share=_rounded(told.busy_share, 4),
            quarantined=told.accounts.quarantined,
            workers=told.workers,
        )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


class _Mark(SpinnerColumn):
    """Turns while the stage runs, then says how it ended."""

    def __init__(self, console: Console) -> None:
        self._unicode = console.encoding.startswith("utf")
        super().__init__("dots" if self._unicode else "line")

    def render(self, task: Task) -> RenderableType:
        told: progress.Progress = task.fields["told"]
        if told.status is None:
            return super().render(task)
        mark, colour = _MARKS[told.status]
        return Text(mark if self._unicode else mark.translate(_ASCII), style=colour)


class _Detail(TextColumn):
    def __init__(self, table_column: Column) -> None:
        super().__init__("{task.fields[detail]}", markup=False, table_column=table_column)
