"""Joining a Ray, or starting one: credentials, the first questions to a head, and nodes that have to be alike.

Nodes of a cluster must hold the same code and packages as the driver: what goes into a worker is pickled by name, and
bytes are promised to be the same wherever a shard is made. :mod:`tasks.actor` looks whether they do.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

# These have no public name, and Ray's public ones wait for most of a minute without a reason: its version is pinned.
from ray._private import ray_constants, services
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, Config, GcsClient, get_authentication_mode
from ray.exceptions import AuthenticationError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tasks import actor
from tasks.runs import PACKAGES

LOCAL, LOOPBACK = "local", "127.0.0.1"
OWN = "winnow-own"
"""Namespace of a Ray that this process started itself."""
START_SECONDS = 60.0
REACH_SECONDS = 5.0
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


class ClusterRefused(ValueError):
    """The cluster cannot be joined, or its nodes are not what this process is: one line with the remedy."""


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
    with _of_one_machine():
        ray.init(
            address=LOCAL,  # without it RAY_ADDRESS would decide
            namespace=OWN,
            num_cpus=cpus or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=True,
        )


@contextmanager
def _of_one_machine() -> Iterator[None]:
    """Ray takes the outer address in place of loopback, but where it forms no clusters, as on macOS: here too then."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _join(address: str) -> None:
    where = _reach(address)
    try:
        ray.init(address=where, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, RayError) as error:
        hint = "" if "ersion" in str(error) else "; this machine has to be one of its nodes: `ray start --address` here"
        raise ClusterRefused(f"the Ray cluster at {where} was not joined: {line_of(error)}{hint}") from error
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
    trouble = silent(where, REACH_SECONDS)
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
        raise ClusterRefused(f"what answers at {where} is no head of a Ray cluster: {line_of(error)}") from error
    return str(where)


def silent(where: str, seconds: float) -> str:
    """Why nothing listens at HOST:PORT; empty where something does."""
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, ValueError, OverflowError) as error:
        return line_of(error)
    return ""


@contextmanager
def _credentials(own: bool) -> Iterator[None]:
    """Ray's token, for as long as the Ray lives. Ray would leave one in the home folder and change the environment.

    Our own Ray gets a token that nobody else has: its ports are on loopback, where other users are too. A cluster that
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


def line_of(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
