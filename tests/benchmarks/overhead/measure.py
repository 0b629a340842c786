"""Runs one side of a comparison in a fresh process and says how long it worked and how much CPU all of it took.

The process prints one JSON line with ``ready`` and ``done``, read from the monotonic clock: what lies before ``ready``
is start-up, between the two is work. CPU time is that of the process and all below it, Ray's own processes too, read
from the process table twice a second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
SAMPLE_SECONDS = 0.5
Side = dict[str, Any]


class Failed(RuntimeError):
    """A side did not come to its end."""


def environment(threads: int = 1, **more: str) -> dict[str, str]:
    """As many threads for both sides: a Ray worker gets its number of CPUs, which Arrow and torch follow."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT}:{HERE}", **more}


def together(
    commands: Sequence[Sequence[str]], env: Mapping[str, str], cwd: Path, begin: Callable[[], object] = lambda: None
) -> list[Side]:
    """Starts the commands at once and gives back what each printed, with ``launched`` and samples of the CPU time.

    ``begin`` is called now and then: it lets the processes go on once all of them are ready.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    launched = time.monotonic()
    running = []
    for number, command in enumerate(commands):
        out, log = (cwd / f"{kind}-{number}" for kind in ("out", "log"))
        with out.open("w") as stdout, log.open("w") as stderr:
            running.append(subprocess.Popen(command, env=dict(env), cwd=cwd, stdout=stdout, stderr=stderr))
    samples: list[list[tuple[float, float]]] = [[] for _ in running]
    highest: list[dict[int, float]] = [{} for _ in running]
    while any(one.poll() is None for one in running):
        begin()
        for place, one in enumerate(running):
            _sample(one.pid, highest[place])
            samples[place].append((time.monotonic(), sum(highest[place].values())))
        time.sleep(SAMPLE_SECONDS)
    sides = []
    for number, one in enumerate(running):
        lines = (cwd / f"out-{number}").read_text().splitlines()
        if one.returncode or not lines:
            tail = (cwd / f"log-{number}").read_text()[-2000:]
            raise Failed(f"{' '.join(commands[number])} ended with {one.returncode}:\n{tail}")
        side = json.loads(lines[-1])
        sides.append({**side, "launched": launched, "samples": samples[number]})
    return sides


def alone(command: Sequence[str], env: Mapping[str, str], cwd: Path, ready: Path | None = None) -> Side:
    """One command, and of its work: ``start_seconds``, ``seconds``, ``cpu_seconds``.

    ``ready``: file to which its workers write when they are; then ``work_seconds`` is from the mean of these times on,
    unless the command said itself how long it worked.
    """
    [side] = together([command], env, cwd)
    told = joined([side])
    if ready is not None:
        began = statistics.mean(map(float, ready.read_text().split()))
        told.setdefault("work_seconds", round(side["done"] - began, 3))
    return told


def joined(sides: Sequence[Side]) -> Side:
    """Processes that did one work together: from when they were ready, in the mean, to the last that was done."""
    ready, done = statistics.mean(one["ready"] for one in sides), max(one["done"] for one in sides)
    cpu = sum(_at(one["samples"], done) - _at(one["samples"], ready) for one in sides)
    kept = {name: value for name, value in sides[0].items() if name not in ("samples", "launched", "ready", "done")}
    return {
        **kept,
        "start_seconds": round(ready - sides[0]["launched"], 2),
        "seconds": round(done - ready, 3),
        "cpu_seconds": round(cpu, 1),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest of the rounds."""
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def _sample(pid: int, highest: dict[int, float]) -> None:
    try:
        top = psutil.Process(pid)
        processes = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in processes:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        highest[one.pid] = max(highest.get(one.pid, 0.0), times.user + times.system)


def _at(samples: Sequence[tuple[float, float]], when: float) -> float:
    """CPU seconds at a time, between two samples in proportion."""
    before = (samples[0][0], 0.0)
    for moment, cpu in samples:
        if moment >= when:
            share = (when - before[0]) / max(moment - before[0], 1e-9)
            return before[1] + share * (cpu - before[1])
        before = (moment, cpu)
    return before[1]
