"""The one module that drives Ray: workers as actors, each fed by the driver's queue.

Actors and not Ray Data: units are source shards and results are records, so no table ever has to travel through the
object store, nothing is keyed on Ray's blocks, and a stuck actor can be killed and its shard retried (see
docs/architecture.md).

Nodes of a cluster must hold the same code and packages as the driver: what goes into a worker is pickled by name, and
bytes are promised to be the same wherever a shard is made. :mod:`tasks.actor` looks whether they do.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle

# These have no public name, and Ray's public ones wait for most of a minute without a reason: its version is pinned.
from ray._private import services, state
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, Config, GcsClient, get_authentication_mode
from ray.exceptions import (
    ActorUnavailableError,
    AuthenticationError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.base import Resources
from tasks import actor
from tasks.credentials import for_workers
from tasks.runs import PACKAGES
from tasks.workers import Worker, WorkerDied

LOCAL = "local"
OWN = "winnow-own"
"""Namespace of a Ray that this process started itself."""
START_SECONDS = 60.0
REACH_SECONDS = 5.0
PLACE_SECONDS = 600.0
"""How long a worker may wait for a node with room: an autoscaler needs minutes to bring a machine with a GPU."""
LOST_SECONDS = 30.0
"""How long a cluster may be silent; Ray itself ends the driver's process, without a word to us, after 60."""
LOOK_SECONDS = 2.0
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
cloudpickle.register_pickle_by_value(actor)


class ClusterRefused(ValueError):
    """The cluster cannot be joined, or its nodes are not what this process is: one line with the remedy."""


class ClusterLost(RuntimeError):
    """The cluster went away in the middle. What is done is kept; the same command goes on."""


@contextmanager
def cluster(address: str = LOCAL, cpus: int | None = None) -> Iterator[None]:
    """A Ray to work on: ``local`` starts one on loopback and stops it again, ``auto`` joins the one this machine is
    in (RAY_ADDRESS, or what `ray start` left here), HOST:PORT the one of that head.

    Raises ClusterRefused, in seconds, where there is none, where it asks for another token, or where one of its nodes
    has other code or packages than this process.
    """
    if ray.is_initialized():
        yield
        return
    with _credentials(own=address == LOCAL):
        if address == LOCAL:
            _start(cpus)
        else:
            _join(address)
        try:
            yield
        finally:
            ray.shutdown()


def _start(cpus: int | None) -> None:
    # usage statistics and the dashboard both reach out or listen wide
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address=LOCAL,  # without it RAY_ADDRESS would decide
        namespace=OWN,
        num_cpus=cpus or len(os.sched_getaffinity(0)),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=True,
    )


def _join(address: str) -> None:
    where = _reach(address)
    try:
        ray.init(address=where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, RayError) as error:
        hint = "" if "ersion" in str(error) else "; this machine has to be one of its nodes: `ray start --address` here"
        raise ClusterRefused(f"the Ray cluster at {where} was not joined: {_line(error)}{hint}") from error
    try:
        _same_everywhere()
    except BaseException:
        ray.shutdown()
        raise


def _reach(address: str) -> str:
    """HOST:PORT of the head. Ray itself would try for most of a minute, and then not say what is wrong."""
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if named.startswith("ray://"):
        said = address if named == address else f"{address} (RAY_ADDRESS={named})"
        raise ClusterRefused(
            f"--ray-address {said}: Ray Client is not supported; run on a node of the cluster with auto, or submit a "
            "job with `winnow submit`"
        )
    where = services.canonicalize_bootstrap_address(address)
    if where is None:
        raise ClusterRefused(
            "--ray-address auto: no Ray cluster runs on this machine and RAY_ADDRESS names none; start one with "
            "`ray start --head`, or leave the address at local"
        )
    trouble = _silent(where, REACH_SECONDS)
    if trouble:
        raise ClusterRefused(
            f"the Ray cluster at {where} does not answer ({trouble}); is its head up, is this its port?"
        )
    token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if get_authentication_mode() == AuthenticationMode.TOKEN and not token:  # Ray would abort the process
        raise ClusterRefused(
            f"{AUTH_MODE} is token and there is none: set {AUTH_TOKEN}, or RAY_AUTH_TOKEN_PATH to the cluster's token"
        )
    try:
        GcsClient(address=where)
    except AuthenticationError as error:
        raise ClusterRefused(
            f"the Ray cluster at {where} refuses us: it wants a token; set {AUTH_MODE}=token, and its token as "
            f"{AUTH_TOKEN} or RAY_AUTH_TOKEN_PATH"
        ) from error
    except RayError as error:
        raise ClusterRefused(f"what answers at {where} is no head of a Ray cluster: {_line(error)}") from error
    return str(where)


def _silent(where: str, seconds: float) -> str:
    """Why nothing listens at HOST:PORT; empty where something does."""
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, ValueError, OverflowError) as error:
        return _line(error)
    return ""


@contextmanager
def _credentials(own: bool) -> Iterator[None]:
    """Ray's token, for as long as the Ray lives. Ray would leave one in the home folder and change the environment.

    Our own Ray gets a token that nobody else has, because its ports are open to the whole network. A cluster that
    others run gets the token of the environment, and the one in the home folder where no mode was set.
    """
    before = {name: os.environ.get(name) for name in (AUTH_MODE, AUTH_TOKEN)}
    if own and before[AUTH_MODE] is None:
        os.environ[AUTH_MODE], os.environ[AUTH_TOKEN] = "token", secrets.token_hex(32)
    elif before[AUTH_MODE] is None and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ[AUTH_MODE] = "token"
    _read_credentials()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_credentials()


def _read_credentials() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _same_everywhere() -> None:
    """Raises ClusterRefused where a node has another winnow, Python or package that can change an output."""
    here = actor.installed(PACKAGES)
    look = ray.remote(num_cpus=0, max_retries=0)(actor.look)
    nodes = {one["NodeID"]: one["NodeManagerAddress"] for one in ray.nodes() if one["Alive"]}
    there = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(PACKAGES): address
        for node, address in nodes.items()
    }
    done, silent = ray.wait(list(there), num_returns=len(there), timeout=START_SECONDS)
    if silent:
        raise ClusterRefused(
            f"{len(silent)} of {len(nodes)} nodes of the cluster did not answer within {START_SECONDS:.0f} s, the "
            f"first {there[silent[0]]}; is it healthy (`ray status`)?"
        )
    for one in done:
        try:
            host, found = ray.get(one, timeout=START_SECONDS)
        except RayError:
            continue  # a node that left meanwhile; one that comes is looked at by its workers
        if told := actor.differences(here, found):
            raise ClusterRefused(
                f"node {there[one]} ({host}) is not like this one: {told}; give all nodes of the cluster the same image"
            )


class _RayHandle:
    def __init__(self, remote: Any) -> None:
        self.actor = remote
        self.began = time.monotonic()
        self.placed = remote.__ray_ready__.remote()
        self.setup: Any = None

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
        """Whether the head still answers, and which workers found no room."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        if not self._head_answers() or not self._waiting:
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

    def _head_answers(self) -> bool:
        trouble = _silent(self._head, LOOK_SECONDS)
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
            raise WorkerDied(f"worker process died ({_line(error)})") from error
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


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
