"""The key of a remote engine reaches workers on Ray, its own and a cluster's, and lies nowhere afterwards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from operators.base import Resources
from operators.language.keys import KEY_VARIABLES
from tasks.credentials import given
from tasks.executor import Effort, Policy, run_units
from tests.nodes import TOKEN, Nodes
from tests.remote_engine import KeyReader

pytestmark = pytest.mark.timeout(300)
CANARY = "sk-canary-0c4e8d2b7a61"


def holding(folder: Path) -> list[str]:
    """Files below the folder that hold the key."""
    return [str(one) for one in folder.rglob("*") if one.is_file() and CANARY.encode() in one.read_bytes()]


def seen_by_a_worker(name: str = KEY_VARIABLES[0]) -> list[str]:
    from tasks.ray_executor import RayPool

    outcomes = run_units(RayPool(Resources(cpus=1)), KeyReader(name), [1], Policy(setup_seconds=120), Effort())
    return [str(one.value or one.error) for one in outcomes]


def test_the_key_reaches_a_worker_of_a_cluster_and_stays_nowhere(
    ray_head: Nodes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tasks.ray_cluster import cluster

    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with cluster("auto"):
        monkeypatch.setenv(KEY_VARIABLES[0], CANARY)
        assert seen_by_a_worker() == [hashlib.sha256(CANARY.encode()).hexdigest()]
        # a store's credentials are each machine's own, unless this run was given some: then they are everywhere
        monkeypatch.setenv("AWS_SESSION_TOKEN", "the driver's own")
        assert seen_by_a_worker("AWS_SESSION_TOKEN") == [hashlib.sha256(b"").hexdigest()]
        with given({"AWS_SESSION_TOKEN": CANARY, KEY_VARIABLES[0]: None}):
            assert seen_by_a_worker("AWS_SESSION_TOKEN") == [hashlib.sha256(CANARY.encode()).hexdigest()]
            assert seen_by_a_worker() == [hashlib.sha256(b"").hexdigest()]
        assert seen_by_a_worker("AWS_SESSION_TOKEN") == [hashlib.sha256(b"").hexdigest()]
        assert len(list(Path(ray_head.folder.name).rglob("*.log"))) > 3, "Ray's logs are elsewhere"
        assert holding(Path(ray_head.folder.name)) == []
    assert holding(Path(ray_head.folder.name)) == []
    assert CANARY not in "".join(capfd.readouterr())


def test_the_key_reaches_a_worker_of_a_ray_of_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    from tasks.ray_cluster import cluster

    with cluster(cpus=1):
        monkeypatch.setenv(KEY_VARIABLES[0], CANARY)  # after the start, so that it is not simply inherited
        import ray

        assert seen_by_a_worker() == [hashlib.sha256(CANARY.encode()).hexdigest()]
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        assert list(session.rglob("*.log")) and holding(session) == []
