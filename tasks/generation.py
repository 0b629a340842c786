"""Keeps one engine fed: requests of several shards stream through it, finished ones go to the ledger in blocks.

The engine runs in a thread of its own for as long as the worker lives. ``complete`` may be called by several shards
at once; while one waits for its last answers the next one's requests already fill the free slots, so the engine never
drains between shards. A block is committed at 256 completions or after 60 s, over all shards together.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from operators.language.choose import EngineError
from operators.language.engine import Completion, Engine, FinishReason, RemoteEngine, Request, Sampling
from tasks.executor import SetupFailed, WorkerDied
from tasks.ledger import Ledger
from tasks.logs import event

BLOCK_REQUESTS = 256
BLOCK_SECONDS = 60.0
DRAIN_SECONDS = 5.0
"""In place of BLOCK_SECONDS once the worker is drained: it may be ended before the engine has finished its last."""
IDLE_SECONDS = 0.05
CLOSE_SECONDS = 30.0
SAVE_TRIES = 4
SAVE_PAUSE_SECONDS = 2.0
"""Before a block that the store did not take is written once more; doubled each time."""
UNSAVED_MOST = 16 * BLOCK_REQUESTS
"""Completions that are held while the store takes none; then the worker fails, since each one more would be at risk."""


@dataclass
class _Job:
    """One shard's requests: what is still out, what came back, and what the ledger does not hold yet.

    ``saving``: completions of a block on its way to the store. ``left``: nobody waits for it any more; where the store
    refused its last block it stays until that is written.
    """

    content: str
    name: str
    waiting: int
    done: dict[str, Completion] = field(default_factory=dict)
    unsaved: dict[str, Completion] = field(default_factory=dict)
    saving: int = 0
    finished: threading.Event = field(default_factory=threading.Event)
    left: bool = False


class Generation:
    """``on_tokens`` hears of every completion's tokens as it arrives."""

    def __init__(self, engine: Engine, sampling: Sampling, ledger: Ledger, on_tokens: Callable[[int], None]) -> None:
        self.engine, self.sampling, self.ledger, self.on_tokens = engine, sampling, ledger, on_tokens
        self._queue: queue.SimpleQueue[tuple[str, Request, _Job]] = queue.SimpleQueue()
        self._out: dict[int, tuple[str, Request, _Job]] = {}
        self._jobs: list[_Job] = []
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._saved, self._pause = time.monotonic(), 0.0
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
        job = self._job(content, name, requests)
        for key, request in requests.items():
            if key not in job.done:
                self._queue.put((key, request, job))
        try:
            while not job.finished.wait(1.0) and self._thread.is_alive():
                self._save_if_due(soon=True)  # an engine that stands still inside generate() does not come to it
            self._save([job], SAVE_TRIES)
        finally:
            with self._lock:
                job.left = True
                self._jobs = [
                    one for one in self._jobs if not one.left or one.unsaved
                ]  # what has to be written yet stays
        if job.waiting == 0:  # the engine may have failed since, at another shard's requests
            return job.done
        if isinstance(self._error, EngineError):
            raise SetupFailed(str(self._error)) from self._error
        if self._error is not None:
            raise WorkerDied(f"the language engine failed: {self._error}")
        return None

    def _job(self, content: str, name: str, requests: Mapping[str, Request]) -> _Job:
        """Begins a shard's job. What the store did not take of an earlier try at the shard, and is in hand, is its."""
        job = _Job(content, name, waiting=0)
        earlier = [one for one in self._all() if one.left and one.content == content]
        with self._saving if earlier else nullcontext(), self._lock:  # of these nothing is on its way now
            for one in earlier:
                taken = {key: one.unsaved.pop(key) for key in requests.keys() & one.unsaved.keys()}
                job.done |= taken
                job.unsaved |= taken
            job.waiting = len(requests) - len(job.done)
            self._jobs.append(job)
        if not job.waiting:
            job.finished.set()
        return job

    def drain(self) -> None:
        """No further request is given to the engine; what it holds is finished and kept.

        A remote engine holds what it has sent: what still waits to be sent is given up. What came back so far is
        written at once: the engine may stand still, and this be the last that the worker is asked.
        """
        self._draining.set()
        if isinstance(self.engine, RemoteEngine):
            self.engine.drain()
        try:
            self._save(self._all())
        except Exception:  # whatever a store raises
            logging.getLogger(__name__).warning("the ledger could not be written, it is tried once more", exc_info=True)

    def spent(self) -> Mapping[str, int]:
        """What a remote engine sent and paid for so far; nothing of an engine that runs here."""
        return self.engine.spent() if isinstance(self.engine, RemoteEngine) else {}

    def close(self) -> None:
        self.drain()  # and so writes what is here: whoever closes may not wait for what is still on its way
        self._thread.join(timeout=CLOSE_SECONDS)
        self.engine.close()
        self._save(self._all())

    def _run(self) -> None:
        try:
            for request, completion in self.engine.generate(self._feed(), self.sampling):
                self._receive(request, completion)
        except BaseException as error:  # told to every waiting shard by complete()
            self._error = error
        try:
            # before any shard is told: the first one that fails takes the process with it, and the others' answers
            self._save(self._all(), SAVE_TRIES)
        except BaseException as error:
            self._error = self._error or error

    def _all(self) -> list[_Job]:
        with self._lock:
            return list(self._jobs)

    def _feed(self) -> Iterator[Request | None]:
        while not self._draining.is_set():
            self._save_if_due(soon=not self._out)
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

    def _save_if_due(self, soon: bool = False) -> None:
        """A store that does not take a block gets it again with the next one; only too much at risk is an error.

        ``soon``: who calls has nothing else to do. Then what was refused is offered again soon, so that whoever takes
        the shard next finds it, and what comes in while the worker drains is not kept waiting.
        """
        jobs = self._all()
        with self._lock:
            # a block on its way is as much at risk as those that wait: together they are never more than one
            unsaved = sum(len(job.unsaved) + job.saving for job in jobs)
        waited = time.monotonic() - self._saved
        late = BLOCK_SECONDS
        if soon:
            late = self._pause or (DRAIN_SECONDS if self._draining.is_set() else BLOCK_SECONDS)
        if (unsaved >= BLOCK_REQUESTS and waited > self._pause) or (unsaved and waited > late):
            try:
                self._save(jobs)
            except Exception as error:  # whatever a store raises
                if unsaved >= UNSAVED_MOST:
                    raise
                told = f"a block of the ledger was not written, it is tried again: {error}"
                event("ledger_not_written", told, logging.WARNING, error=str(error))

    def _save(self, jobs: list[_Job], tries: int = 1) -> None:
        """Writes what is not in the ledger yet. What cannot be written stays in hand, and its error is raised."""
        for attempt in range(tries):
            if attempt:
                time.sleep(SAVE_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                with self._saving:  # who finds nothing to save knows that it is saved, not only on its way
                    self._write(jobs)
                return
            except Exception:  # whatever a store raises
                if attempt + 1 == tries:
                    raise

    def _write(self, jobs: list[_Job]) -> None:
        self._saved, self._pause = time.monotonic(), 0.0
        for job in jobs:
            with self._lock:
                block, job.unsaved = job.unsaved, {}
                job.saving = len(block)
            if not block:
                continue
            try:
                self.ledger.append(job.content, job.name, block)
            except BaseException:
                with self._lock:
                    job.unsaved = {**block, **job.unsaved}
                self._pause = SAVE_PAUSE_SECONDS
                raise
            finally:
                with self._lock:
                    job.saving = 0
