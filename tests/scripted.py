"""A pool without processes or threads, whose workers do what a script says: the scheduling loop is tested on it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tasks.executor import Beat, Effort, Outcome, Policy, WorkerDied, run_units
from tasks.source import ShardError
from tasks.store import StoreAway
from tasks.workers import Notice

DIES, FAILS, PERMANENT, HANGS, GIVES_UP, FINE = "dies", "fails", "permanent", "hangs", "gives up", "fine"
AWAY = "away"


@dataclass
class Plain:
    """All that the loop asks of a worker where the pool plays its part."""

    concurrency: int = 1

    def setup(self) -> None: ...

    def process(self, unit: Any) -> Any:
        return f"made {unit}"

    def beat(self) -> Beat:
        return Beat()

    def drain(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class ScriptedHandle:
    """A worker whose calls stay open until the pool's ``wait`` plays the next one."""

    number: int
    open: dict[Any, Future[Any]] = field(default_factory=dict)
    most_held: int = 0
    killed: bool = False
    drained: bool = False


class ScriptedPool:
    """``script(unit, attempt)`` says how a unit ends; ``setups`` what the set-up of each started worker raises.

    A unit ends when ``wait`` is called; a worker that dies takes all that it holds with it.
    """

    name = "scripted"

    def __init__(
        self, script: Callable[[Any, int], str] = lambda unit, attempt: FINE, setups: Sequence[Exception | None] = ()
    ) -> None:
        self.script, self.setups = script, list(setups)
        self.handles: list[ScriptedHandle] = []
        self.gone: set[int] = set()
        self.gone_by = float("inf")
        self.notice: Notice | None = None
        self.closed = 0
        self.tries: Counter[Any] = Counter()
        self.beside: dict[Any, list[set[Any]]] = defaultdict(list)

    def start(self, worker: Any) -> Any:
        handle = ScriptedHandle(len(self.handles))
        self.handles.append(handle)
        pool = self

        class Caller:
            number = handle.number

            def call(self, method: str, *arguments: Any) -> Future[Any]:
                return pool._call(handle, method, *arguments)

            def kill(self) -> None:
                handle.killed = True

        return Caller()

    def _call(self, handle: ScriptedHandle, method: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if method == "process":
            handle.open[arguments[0]] = future
            handle.most_held = max(handle.most_held, len(handle.open))
        elif method == "setup":
            error = self.setups[handle.number] if handle.number < len(self.setups) else None
            future.set_exception(error) if error else future.set_result(None)
        else:
            handle.drained = handle.drained or method == "drain"
            future.set_result(Beat() if method == "beat" else None)
        return future

    def wait(self, futures: Sequence[Future[Any]], seconds: float) -> list[Future[Any]]:
        for handle in self.handles:
            if handle.open and not handle.killed:
                self._play(handle)
                break
        done = [future for future in futures if future.done()]
        if not done and seconds:
            time.sleep(0.002)
        return done

    def _play(self, handle: ScriptedHandle) -> None:
        unit = next(iter(handle.open))
        ends = self.script(unit, self.tries[unit] + 1)
        if ends == HANGS:
            return
        self.tries[unit] += 1
        self.beside[unit].append(set(handle.open) - {unit})
        if ends == DIES:
            for future in handle.open.values():
                future.set_exception(WorkerDied("gone"))
            handle.open.clear()
            return
        future = handle.open.pop(unit)
        if ends == GIVES_UP:
            future.set_result(None)
        elif ends == FINE:
            future.set_result(f"made {unit}")
        else:
            raised = {PERMANENT: ShardError("bad shard"), AWAY: StoreAway("the store does not answer")}
            future.set_exception(raised.get(ends) or RuntimeError("failed"))

    def result(self, future: Future[Any]) -> Any:
        return future.result(timeout=0)

    def capacity(self, cpus: float, gpus: float) -> int:
        return 100

    def leaving(self, handles: Sequence[Any]) -> list[tuple[Any, float]]:
        return [(one, self.gone_by) for one in handles if one.number in self.gone]

    def ending(self) -> Notice | None:
        return self.notice

    def close(self) -> None:
        self.closed += 1


def work(pool: Any, units: Sequence[Any], worker: Any = None, stop: Any = None, **policy: Any) -> list[Outcome]:
    more = {} if stop is None else {"stop": stop}
    return list(run_units(pool, worker or Plain(), units, Policy(**policy), Effort(), **more))
