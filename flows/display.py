"""Progress on the terminal: one line a stage with its rate and time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tasks import stage

PLAIN_SECONDS = 10.0


class StageDisplay:
    """Shows what it is told by ``show``; safe to use where output goes to a file."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, tuple[float, int]] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} shards"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> StageDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, progress: stage.Progress) -> None:
        if self._console.is_terminal:
            if progress.stage not in self._bars:
                self._bars[progress.stage] = self._progress.add_task(f"{progress.stage:<24}", total=1, detail="")
            self._progress.update(
                self._bars[progress.stage],
                completed=progress.done,
                total=max(1, progress.total) if progress.total else 1,
                detail=_detail(progress),
            )
            return
        said, done = self._said.get(progress.stage, (0.0, -1))
        finished = progress.done == progress.total and progress.done != done
        if finished or time.monotonic() - said > PLAIN_SECONDS:
            self._said[progress.stage] = (time.monotonic(), progress.done)
            self._console.print(
                f"{progress.stage}: {progress.done}/{progress.total} shards, {_detail(progress)}", highlight=False
            )


def _detail(progress: stage.Progress) -> str:
    parts = [f"{progress.rows:,} rows" if progress.rows else ""]
    if progress.tokens and progress.seconds:
        parts.append(f"{progress.tokens:,} tokens, {progress.tokens / progress.seconds:,.0f}/s")
    left = progress.eta_seconds
    if left:
        parts.append(f"{left:.0f} s left")
    said = ", ".join(part for part in parts if part)
    return said or ("found finished" if progress.done else "starting")
