"""Keeps one engine fed: requests of several shards stream through it, finished ones go to the ledger in blocks.

The engine runs in a thread of its own for as long as the worker lives. ``complete`` may be called by several shards
at once; while one waits for its last answers the next one's requests already fill the free slots, so the engine never
drains between shards. A block is committed at 256 completions or after 60 s, over all shards together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from operators.language.choose import EngineError
from operators.language.engine import Completion, Engine, FinishReason, RemoteEngine, Request, Sampling
from tasks.executor import SetupFailed, WorkerDied
from tasks.ledger import Ledger

BLOCK_REQUESTS = 256
BLOCK_SECONDS = 60.0
IDLE_SECONDS = 0.05
CLOSE_SECONDS = 30.0


@dataclass
class _Job:
    """One shard's requests: what is still out, what came back, and what the ledger does not hold yet."""

    content: str
    name: str
    waiting: int
    done: dict[str, Completion] = field(default_factory=dict)
    unsaved: dict[str, Completion] = field(default_factory=dict)
    finished: threading.Event = field(default_factory=threading.Event)


class Generation:
    """``on_tokens`` hears of every completion's tokens as it arrives."""

    def __init__(self, engine: Engine, sampling: Sampling, ledger: Ledger, on_tokens: Callable[[int], None]) -> None:
        self.engine, self.sampling, self.ledger, self.on_tokens = engine, sampling, ledger, on_tokens
        self._queue: queue.SimpleQueue[tuple[str, Request, _Job]] = queue.SimpleQueue()
        self._out: dict[int, tuple[str, Request, _Job]] = {}
        self._jobs: list[_Job] = []
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        self._draining = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="winnow-engine")
        self._thread.start()

    def complete(self, content: str, name: str, requests: Mapping[str, Request]) -> dict[str, Completion] | None:
        """Completions by key, all of them in the ledger; None where the worker was drained before they were done.

        Raises WorkerDied where the engine is gone: another worker has to take the shard. Raises SetupFailed where it
        says that no worker can do better (a wrong key): the stage ends.
        """
        if not requests:
            return {}
        job = _Job(content, name, waiting=len(requests))
        with self._lock:
            self._jobs.append(job)
        for key, request in requests.items():
            self._queue.put((key, request, job))
        while not job.finished.wait(1.0):
            if not self._thread.is_alive():
                break
        with self._lock:
            self._jobs.remove(job)
        self._save([job])
        if isinstance(self._error, EngineError):
            raise SetupFailed(str(self._error)) from self._error
        if self._error is not None:
            raise WorkerDied(f"the language engine failed: {self._error}")
        return job.done if job.waiting == 0 else None

    def drain(self) -> None:
        """No further request is given to the engine; what it holds is finished and kept.

        A remote engine holds what it has sent: what still waits to be sent is given up.
        """
        self._draining.set()
        if isinstance(self.engine, RemoteEngine):
            self.engine.drain()

    def spent(self) -> Mapping[str, int]:
        """What a remote engine sent and paid for so far; nothing of an engine that runs here."""
        return self.engine.spent() if isinstance(self.engine, RemoteEngine) else {}

    def close(self) -> None:
        self.drain()
        self._thread.join(timeout=CLOSE_SECONDS)
        self.engine.close()
        with self._lock:
            jobs = list(self._jobs)
        self._save(jobs)

    def _run(self) -> None:
        try:
            for request, completion in self.engine.generate(self._feed(), self.sampling):
                self._receive(request, completion)
        except BaseException as error:  # told to every waiting shard by complete()
            self._error = error

    def _feed(self) -> Iterator[Request | None]:
        while not self._draining.is_set():
            self._save_if_due()
            try:
                key, request, job = self._queue.get(timeout=IDLE_SECONDS if not self._out else 0.001)
            except queue.Empty:
                yield None
                continue
            self._out[id(request)] = (key, request, job)
            yield request

    def _receive(self, request: Request, completion: Completion) -> None:
        key, _, job = self._out.pop(id(request))
        self.on_tokens(completion.completion_tokens)
        with self._lock:
            job.done[key] = completion
            # an error is not paid for, and may not come again
            if completion.finish_reason is not FinishReason.ERROR:
                job.unsaved[key] = completion
            job.waiting -= 1
            last = job.waiting == 0
        self._save_if_due()
        if last:
            job.finished.set()

    def _save_if_due(self) -> None:
        with self._lock:
            jobs = list(self._jobs)
            unsaved = sum(len(job.unsaved) for job in jobs)
        if unsaved >= BLOCK_REQUESTS or (unsaved and time.monotonic() - self._saved > BLOCK_SECONDS):
            self._save(jobs)

    def _save(self, jobs: list[_Job]) -> None:
        for job in jobs:
            with self._lock:
                block, job.unsaved = job.unsaved, {}
            if block:
                self.ledger.append(job.content, job.name, block)
        self._saved = time.monotonic()
