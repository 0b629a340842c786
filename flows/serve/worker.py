"""A worker of one pool, as a process of its own: Prefect's, but cancelled runs get the time they need to drain.

Prefect's process worker kills a cancelled run 30 s after its SIGTERM, and nothing can be set to change that. A stage
is given ``Policy.drain_seconds`` to finish its shards, and the run has to save its summary after.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runner import Runner
from prefect.states import Cancelled
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.signals import PR_SET_PDEATHSIG, WORKER
from tasks.executor import Policy

DRAIN_SECONDS = Policy().drain_seconds + 60.0
LOOK_SECONDS = 0.25
NOTE_SECONDS = 10.0
"""How long Prefect's server may take to be told of the last run's end: it can be gone."""


class DrainingRunner(Runner):
    """Starts and cancels the processes of flow runs."""

    async def _kill_process(self, pid: int, grace_seconds: float = DRAIN_SECONDS) -> None:
        """SIGTERM, and SIGKILL after ``DRAIN_SECONDS``, whatever grace is asked for."""
        await end_process(pid)

    async def _mark_flow_run_as_cancelled(self, flow_run: Any, state_updates: dict[str, Any] | None = None) -> bool:
        """Leaves the state alone where the run has ended as Cancelled itself, and has said more than we could."""
        state = (await self._client.read_flow_run(flow_run.id)).state
        if state is not None and state.is_cancelled():
            return True
        return await super()._mark_flow_run_as_cancelled(flow_run, state_updates)

    def processes(self) -> list[int]:
        return [entry["pid"] for entry in self._flow_run_process_map.values()]


class DrainingWorker(ProcessWorker):
    """Prefect's process worker with a runner of ours, that can also drain all of its runs and end."""

    ending = False
    told = 0
    """Runs of which Prefect or the terminal is still to be told something."""

    @classmethod
    def __dispatch_key__(cls) -> str | None:
        return "winnow-process"  # to Prefect's look-up by type, "process" stays its own class

    async def __aenter__(self) -> DrainingWorker:
        await BaseWorker.__aenter__(self)
        runner = DrainingRunner(pause_on_shutdown=False, limit=None)
        self._runner: DrainingRunner = await self._exit_stack.enter_async_context(runner)
        return self

    async def run(self, flow_run: Any, configuration: Any, task_status: Any = None) -> Any:
        """Carries out one run, and tells the terminal of its beginning and end."""
        self.told += 1
        try:
            return await self._run(flow_run, configuration, task_status)
        finally:
            self.told -= 1

    async def _run(self, flow_run: Any, configuration: Any, task_status: Any) -> Any:
        _tell(f"{flow_run.name} begins ({self._work_pool_name})")
        result = await super().run(flow_run, configuration, task_status)
        if self.ending and result.status_code == -signal.SIGTERM:  # too young to have heard it, and no crash
            why: State[Any] = Cancelled(message="stopped with its worker before it began; start it again")
            await self.client.set_flow_run_state(flow_run.id, why, force=True)
            result = ProcessWorkerResult(status_code=0, identifier=result.identifier)
        state = (await self.client.read_flow_run(flow_run.id)).state
        if state is not None:
            message = " ".join((state.message or "").split())
            _tell(f"{flow_run.name} ended: {state.name}" + (f", {message}" if message else ""))
        return result

    async def get_and_submit_flow_runs(self) -> list[Any]:
        return [] if self.ending else await super().get_and_submit_flow_runs()

    async def drain(self) -> None:
        """Takes no more runs, asks those that run to end, and waits for them; not for what Prefect notes of them."""
        self.ending = True
        ends: dict[int, asyncio.Task[None]] = {}
        deadline = time.monotonic() + DRAIN_SECONDS + NOTE_SECONDS
        while time.monotonic() < deadline:
            for pid in self._runner.processes():
                if pid not in ends:
                    ends[pid] = asyncio.create_task(end_process(pid))
            if ends and all(one.done() for one in ends.values()):
                deadline = min(deadline, time.monotonic() + NOTE_SECONDS)
            if not (self.told or self._submitting_flow_run_ids or self._runner.processes()):
                return
            await asyncio.sleep(LOOK_SECONDS)


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


async def end_process(pid: int) -> None:
    """SIGTERM, and SIGKILL if it still runs after ``DRAIN_SECONDS``. Raises RuntimeError where there is none."""
    deadline = time.monotonic() + DRAIN_SECONDS
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError as error:
        raise RuntimeError(f"Unable to kill process {pid}: The process was not found.") from error
    while time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def work(pool: str) -> None:
    """Works until SIGTERM or SIGINT."""
    async with get_client() as client:
        limit = (await client.read_work_pool(pool)).concurrency_limit  # as it was edited in the UI
    asked = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, asked.set)
    worker = DrainingWorker(work_pool_name=pool, name=f"{pool}-worker", limit=limit, create_pool_if_not_found=False)
    working = asyncio.create_task(worker.start(printer=lambda text: None))
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        await working  # raises what ended it
        return
    if worker.is_setup:
        await worker.drain()
    working.cancel()
    _, late = await asyncio.wait({working}, timeout=NOTE_SECONDS)
    if late:  # its tries to reach a server that is gone would go on for minutes
        os._exit(0)


def main(pool: str, parent: int) -> None:
    """The program: ends with ``parent``, in order if it can."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked to be told
        return
    os.environ[WORKER] = str(os.getpid())  # the runs inherit it
    asyncio.run(work(pool))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
