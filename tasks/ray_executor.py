"""Workers as actors on Ray, each fed by the driver's queue. With :mod:`tasks.ray_cluster` all that knows of Ray.

Actors and not Ray Data: units are source shards and results are records, so no table ever has to travel through the
object store, nothing is keyed on Ray's blocks, and a stuck actor can be killed and its shard retried (see
docs/architecture.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray._private import state  # what it tells has no public name: Ray's version is pinned
from ray._raylet import GcsClient
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from operators.base import Resources
from tasks import actor
from tasks.credentials import for_workers
from tasks.ray_cluster import OWN, START_SECONDS, line_of, silent
from tasks.runs import PACKAGES
from tasks.workers import Handle, Notice, Worker, WorkerDied

PLACE_SECONDS = 600.0
"""How long a worker may wait for a node with room: an autoscaler needs minutes to bring a machine with a GPU."""
LOST_SECONDS = 30.0
"""How long a cluster may be silent; Ray itself ends the driver's process, without a word to us, after 60."""
LOOK_SECONDS = 2.0
SPARE_SECONDS = 5.0
"""Before the moment at which a machine is to go: a clock may be off, and a process takes its time to end. At most a
quarter of the notice."""
cloudpickle.register_pickle_by_value(actor)


class ClusterLost(RuntimeError):
    """The cluster went away in the middle. What is done is kept; the same command goes on."""


class _RayHandle:
    def __init__(self, remote: Any) -> None:
        self.actor = remote
        self.began = time.monotonic()
        self.placed = remote.__ray_ready__.remote()
        self.setup: Any = None
        self.node = ""

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "setup":
            arguments = (for_workers(),)
        future = getattr(self.actor, method).remote(*arguments)
        if method == "setup":
            self.setup = future
        return future

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


class RayPool:
    """Actors with the operator's resources on the Ray that this process is connected to."""

    name = "ray"

    def __init__(self, resources: Resources, place_seconds: float = PLACE_SECONDS) -> None:
        self.resources, self.place_seconds = resources, place_seconds
        self._waiting: list[_RayHandle] = []
        self._unplaced: dict[Any, str] = {}
        self._head = ray.get_runtime_context().gcs_address
        self._looked = self._heard = time.monotonic()
        self._gcs = GcsClient(address=self._head)
        self._here = ray.get_runtime_context().get_node_id()
        self._leaving: dict[str, float] = {}  # id of a node -> when it has to be left, in monotonic seconds
        # our own Ray is this machine, and needs no look
        self._expected = {} if ray.get_runtime_context().namespace == OWN else actor.installed(PACKAGES)

    def start(self, worker: Worker) -> _RayHandle:
        """Raises ClusterLost where the cluster was silent for long."""
        while not self._head_answers():  # Ray would wait in here for as long, and then end the process
            time.sleep(0.5)
        options: dict[str, Any] = {
            "num_cpus": self.resources.cpus,
            "num_gpus": self.resources.gpus,
            "max_concurrency": worker.concurrency + 3,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",  # few workers on many nodes share no memory bandwidth
        }
        if self.resources.memory_bytes:
            options["memory"] = self.resources.memory_bytes
        remote = ray.remote(actor.Actor).options(**options).remote(cloudpickle.dumps(worker), self._expected)
        handle = _RayHandle(remote)
        self._waiting.append(handle)
        return handle

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """Raises ClusterLost where the cluster was silent for long."""
        self._look()
        unplaced = [one for one in futures if one in self._unplaced]
        by_ref = {future: future for future in futures if future not in self._unplaced}
        if not by_ref:
            return unplaced
        done, _ = ray.wait(list(by_ref), num_returns=1, timeout=0 if unplaced else seconds, fetch_local=False)
        if done:
            more, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0, fetch_local=False)
            done = more or done
        return [*unplaced, *(by_ref[ref] for ref in done)]

    def _look(self) -> None:
        """Whether the head still answers, which nodes are to leave, and which workers found no room."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        if not self._head_answers():
            return
        self._ask_who_leaves()
        if not self._waiting:
            return
        now = time.monotonic()
        placed, _ = ray.wait([one.placed for one in self._waiting], num_returns=len(self._waiting), timeout=0)
        self._waiting = [one for one in self._waiting if one.placed not in set(placed)]
        for one in [one for one in self._waiting if now - one.began > self.place_seconds]:
            self._waiting.remove(one)
            free = ray.available_resources()
            self._unplaced[one.setup] = (
                f"no node had room for it within {self.place_seconds:.0f} s: it wants {self.resources.cpus:g} CPUs "
                f"and {self.resources.gpus:g} GPUs; in the whole cluster {free.get('CPU', 0.0):g} CPUs and "
                f"{free.get('GPU', 0.0):g} GPUs are free (`ray status` says who holds the others)"
            )

    def _ask_who_leaves(self) -> None:
        """Nodes that an autoscaler, `ray drain-node` or SIGTERM to `ray start --block` announced to go."""
        try:
            told = self._gcs.get_draining_nodes(timeout=LOOK_SECONDS)
        except RayError:
            return  # whether the head still answers is seen at the next look
        for node in told.keys() - self._leaving.keys():
            left = told[node] / 1000 - time.time() if told[node] else math.inf  # 0: nobody said when
            self._leaving[node] = time.monotonic() + max(0.0, left - min(SPARE_SECONDS, left / 4))

    def leaving(self, handles: Sequence[Handle]) -> list[tuple[Handle, float]]:
        if not self._leaving:
            return []
        nodes = [(one, self._node_of(one)) for one in handles]
        return [(one, self._leaving[node]) for one, node in nodes if node in self._leaving]

    def ending(self) -> Notice | None:
        """The driver's own node takes the driver with it."""
        if self._here not in self._leaving:
            return None
        return Notice("the machine that drives this run was announced to go away", self._leaving[self._here])

    def _node_of(self, handle: Any) -> str:
        if not handle.node:
            told = state.state.actor_table(handle.actor._actor_id.hex())
            handle.node = told.get("Address", {}).get("NodeID", "")
        return str(handle.node)

    def close(self) -> None:
        """Nothing is held: the cluster belongs to the run, or to others."""

    def _head_answers(self) -> bool:
        trouble = silent(self._head, LOOK_SECONDS)
        self._looked = now = time.monotonic()
        if not trouble:
            self._heard = now
        elif now - self._heard > LOST_SECONDS:
            raise ClusterLost(
                f"the Ray cluster at {self._head} has not answered for {now - self._heard:.0f} s ({trouble})"
            )
        return not trouble

    def result(self, future: Any) -> Any:
        if future in self._unplaced:
            raise ValueError(self._unplaced.pop(future))
        try:
            return ray.get(future, timeout=START_SECONDS)
        except ActorUnavailableError as error:
            raise WorkerDied("worker process died (its node does not answer)") from error
        except RayActorError as error:
            raise WorkerDied(f"worker process died ({line_of(error)})") from error
        except GetTimeoutError as error:
            raise WorkerDied("worker did not hand over its result") from error
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error)) from error

    def capacity(self, cpus: float, gpus: float) -> int:
        """Workers that fit on the nodes, each on one; on a cluster that grows, those that fit when it has grown.

        Raises ClusterLost where no node is left.
        """
        wants = {"CPU": cpus, "GPU": gpus, "memory": self.resources.memory_bytes or 0}
        alive = [one for one in ray.nodes() if one["Alive"]]
        if not alive:  # nothing is wrong with what a worker wants
            raise ClusterLost(f"the Ray cluster at {self._head} has no node left")
        now = sum(_fits(one["Resources"], wants) for one in alive)
        most = state.state.get_max_resources_from_cluster_config()
        return max(now, _fits(most, wants) if most else 0)


def _fits(have: Mapping[str, float], wants: Mapping[str, float]) -> int:
    fits = [have.get(name, 0.0) / amount for name, amount in wants.items() if amount > 0]
    return int(min(fits)) if fits else 1
