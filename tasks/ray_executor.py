"""The one module that drives Ray: workers as actors, each fed by the driver's queue.

Actors and not Ray Data: units are source shards and results are records, so no table ever has to travel through the
object store, nothing is keyed on Ray's blocks, and a stuck actor can be killed and its shard retried (see
docs/architecture.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from operators.base import Resources
from tasks.executor import Beat, Worker, WorkerDied

LOCAL = "local"
START_SECONDS = 60.0


@contextmanager
def cluster(address: str = LOCAL, cpus: int | None = None) -> Iterator[None]:
    """A Ray to work on: ``local`` starts one on loopback and stops it again, ``auto`` joins the one this machine is
    in.
    """
    if ray.is_initialized():
        yield
        return
    if address == LOCAL:
        # usage statistics and the dashboard both reach out or listen wide
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address=LOCAL,  # without it RAY_ADDRESS would decide
            num_cpus=cpus or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=True,
        )
    else:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


class _Actor:
    """Runs in the actor's process and forwards to the worker. Its threads let ``beat`` answer while ``process``
    works.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def setup(self) -> None:
        self.worker.setup()

    def process(self, unit: Any) -> Any:
        return self.worker.process(unit)

    def beat(self) -> Beat:
        return self.worker.beat()

    def drain(self) -> None:
        self.worker.drain()

    def close(self) -> None:
        self.worker.close()


class _RayHandle:
    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.actor, method).remote(*arguments)

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


class RayPool:
    """Actors with the operator's resources on the Ray that this process is connected to."""

    name = "ray"

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def start(self, worker: Worker) -> _RayHandle:
        options: dict[str, Any] = {
            "num_cpus": self.resources.cpus,
            "num_gpus": self.resources.gpus,
            "max_concurrency": worker.concurrency + 3,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if self.resources.memory_bytes:
            options["memory"] = self.resources.memory_bytes
        return _RayHandle(ray.remote(_Actor).options(**options).remote(worker))

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        by_ref = {future: future for future in futures}
        done, _ = ray.wait(list(by_ref), num_returns=1, timeout=seconds, fetch_local=False)
        if done:
            more, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0, fetch_local=False)
            done = more or done
        return [by_ref[ref] for ref in done]

    def result(self, future: Any) -> Any:
        try:
            return ray.get(future, timeout=START_SECONDS)
        except RayActorError as error:
            raise WorkerDied(f"worker process died ({_first(error)})") from error
        except GetTimeoutError as error:
            raise WorkerDied("worker did not hand over its result") from error
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error)) from error

    def capacity(self, cpus: float, gpus: float) -> int:
        have = ray.cluster_resources()
        fits = [have.get("CPU", 0.0) / cpus if cpus > 0 else float("inf")]
        if gpus > 0:
            fits.append(have.get("GPU", 0.0) / gpus)
        return int(min(fits)) if min(fits) != float("inf") else 1


def _first(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
