"""A cluster of real nodes: a head without CPUs and two nodes of one CPU, each a raylet of its own on loopback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

from operators.base import Resources
from tasks import actor, stages
from tasks.aligned import units
from tasks.executor import Effort, Policy, SetupFailed, run_units
from tasks.ray_cluster import cluster
from tasks.ray_executor import LOOK_SECONDS, RayPool
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.nodes import RAY, TOKEN, Nodes, Traced, free_port, node_ids, traced_on, until
from tests.toys import Length, documents

pytestmark = pytest.mark.timeout(300)
SHARDS = 8


@pytest.fixture(scope="module")
def nodes(ray_head: Nodes) -> Iterator[Nodes]:
    ray_head.add("b")
    yield ray_head
    if "b" in ray_head.running:
        ray_head.kill("b")


@pytest.fixture(scope="module")
def joined(nodes: Nodes) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", nodes.address)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        with cluster("auto"):
            until(lambda: {"a", "b"} <= node_ids().keys(), "the driver sees both nodes")
            yield nodes


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for shard in range(SHARDS):
        pq.write_table(documents(4, shard * 4), folder / f"part-{shard}.parquet")
    return folder


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    return folder


def run(operator: Length, source: Path, root: Path, executor: Executor = Executor.RAY) -> StageResult:
    store = Store(str(root))
    stage = stages.annotate("toy", operator, [open_source(str(source), SourceColumns())], store)
    return run_stage(stage, store, Execution(executor=executor, policy=Policy(setup_seconds=90.0)))


def files(root: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in (root / "toy").rglob("*.parquet")}


def test_both_nodes_work_and_the_bytes_are_those_of_a_local_run(
    joined: Nodes, many: Path, trace: Path, tmp_path: Path
) -> None:
    result = run(Traced(slow=0.3, trace=str(trace)), many, tmp_path / "cluster")
    assert result.summary.status is Status.DONE and result.summary.workers == 2
    assert traced_on(trace) == {node_ids()["a"], node_ids()["b"]}
    run(Traced(trace=str(trace)), many, tmp_path / "local", Executor.LOCAL)
    assert files(tmp_path / "cluster") == files(tmp_path / "local") and len(files(tmp_path / "local")) == SHARDS


def test_capacity_is_counted_by_node_and_a_head_without_cpus_has_none(joined: Nodes) -> None:
    assert RayPool(Resources()).capacity(1, 0) == 2
    assert RayPool(Resources()).capacity(0.5, 0) == 4
    assert RayPool(Resources()).capacity(2, 0) == 0, "two nodes of one CPU are no node of two"
    assert RayPool(Resources()).capacity(1, 1) == 0
    assert RayPool(Resources(memory_bytes=1 << 60)).capacity(1, 0) == 0


def test_workers_that_find_no_room_are_done_without_and_said(joined: Nodes, many: Path, tmp_path: Path) -> None:
    import ray

    store = Store(str(tmp_path / "out"))
    stage = stages.annotate("toy", Length(), [open_source(str(many), SourceColumns())], store)
    held = [ray.remote(num_cpus=1)(Holder).remote()]
    ray.get(held[0].ready.remote(), timeout=60)
    try:
        pool, policy = RayPool(Resources(), place_seconds=4), Policy(workers=2, setup_seconds=90)
        outcomes = list(run_units(pool, stage.worker, units(stage.inputs), policy, Effort()))
        assert len(outcomes) == SHARDS and all(one.value is not None for one in outcomes)
        held.append(ray.remote(num_cpus=1)(Holder).remote())
        ray.get(held[1].ready.remote(), timeout=60)
        with pytest.raises(SetupFailed, match="no node had room for it within 4 s: it wants 1 CPUs and 0 GPUs;"):
            list(run_units(pool, stage.worker, units(stage.inputs), policy, Effort()))
    finally:
        for one in held:
            ray.kill(one)


class Holder:
    def ready(self) -> bool:
        return True


@pytest.mark.slow
def test_the_whole_flow_on_the_cluster_makes_the_corpus_of_a_local_run(
    joined: Nodes, many: Path, tmp_path: Path
) -> None:
    words = [str(Path(sys.executable).parent / "winnow"), "curate-text", "--input", str(many), "--no-rephrase"]
    words += ["--max-quarantine", "1", "--tag", "harm_score >= 1"]
    made = {}
    for name, more in {"cluster": ["--ray-address", "auto"], "local": ["--executor", "local"]}.items():
        root = tmp_path / name
        environment = {**joined.environment, "RAY_ADDRESS": joined.address}
        ended = subprocess.run(
            [*words, "--output", str(root), *more],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        found = [one for one in root.rglob("*.parquet") if ".winnow" not in one.parts]
        made[name] = {str(one.relative_to(root)): one.read_bytes() for one in found}
    assert made["cluster"] == made["local"]
    assert any(name.startswith("corpus/") for name in made["local"])


@pytest.mark.slow
def test_a_node_that_is_announced_to_go_is_drained_and_costs_no_attempt(
    joined: Nodes, many: Path, trace: Path, tmp_path: Path
) -> None:
    """A spot notice, as autoscalers and node termination handlers pass it on to Ray."""
    ids, seen = node_ids(), list[set[str]]()

    def announce() -> None:
        until(lambda: set(ids.values()) <= traced_on(trace), "both nodes have a shard in hand")
        words = ["drain-node", f"--address={joined.address}", f"--node-id={ids['b']}"]
        words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
        subprocess.run([RAY, *words], check=True, timeout=60, env=joined.environment, capture_output=True)
        time.sleep(3 * LOOK_SECONDS)
        for one in trace.iterdir():
            one.unlink()
        until(lambda: bool(traced_on(trace)), "the work goes on")
        seen.append(traced_on(trace))

    notice = Thread(target=announce)
    notice.start()
    store = Store(str(tmp_path / "cluster"))
    stage = stages.annotate("toy", Traced(slow=3.0, trace=str(trace)), [open_source(str(many), SourceColumns())], store)
    strict = Policy(setup_seconds=90.0, retries=0)
    try:
        result = run_stage(stage, store, Execution(executor=Executor.RAY, policy=strict))
        notice.join(90)
        assert result.summary.status is Status.DONE and result.summary.shards_made == SHARDS, result.summary.failures
        assert seen == [{ids["a"]}], "nothing more is given to a node that is to go"
        run(Traced(trace=str(trace)), many, tmp_path / "local", Executor.LOCAL)
        assert files(tmp_path / "cluster") == files(tmp_path / "local")
    finally:
        joined.kill("b")
        joined.add("b")
        until(lambda: {"a", "b"} <= node_ids().keys(), "a new node has come")


@pytest.mark.slow
def test_shards_of_a_node_that_dies_are_made_on_the_other(
    joined: Nodes, many: Path, trace: Path, tmp_path: Path
) -> None:
    ids = node_ids()

    def die() -> None:
        until(lambda: ids["b"] in traced_on(trace), "node b has a shard in hand")
        joined.kill("b")

    death = Thread(target=die)
    death.start()
    result = run(Traced(slow=1.0, trace=str(trace)), many, tmp_path / "cluster")
    death.join(60)
    assert result.summary.status is Status.DONE and not result.summary.failures
    assert result.summary.shards_made == SHARDS and result.summary.accounts.closed()
    run(Traced(trace=str(trace)), many, tmp_path / "local", Executor.LOCAL)
    assert files(tmp_path / "cluster") == files(tmp_path / "local")
    until(lambda: "b" not in node_ids(), "Ray has seen that the node is dead")
    assert RayPool(Resources()).capacity(1, 0) == 1


JOIN = """
import sys
from tasks.ray_cluster import ClusterRefused, cluster
try:
    with cluster(sys.argv[1]):
        print("joined")
except ClusterRefused as error:
    print(error)
"""


def told(address: str, **environment: str) -> list[str]:
    """What a process of its own says that tries to join; at least it says so in seconds."""
    hidden = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert time.monotonic() - began < 60
    return ended.stdout.splitlines()


def test_a_cluster_with_a_token_is_joined_with_it_alone(nodes: Nodes, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    wants = (
        f"the Ray cluster at {nodes.address} refuses us: it wants a token; set RAY_AUTH_MODE=token, and its token as"
    )
    mode = {"RAY_AUTH_MODE": "token"}
    assert told(nodes.address, RAY_AUTH_TOKEN=TOKEN, **mode, **home) == ["joined"]
    (without,) = told(nodes.address, **home)
    (wrong,) = told(nodes.address, RAY_AUTH_TOKEN="another-token-another-token-0123456789", **mode, **home)
    assert without.startswith(wants) and wrong.startswith(wants)
    assert "another" not in wrong
    (none,) = told(nodes.address, **mode, **home)
    assert none.startswith("RAY_AUTH_MODE is token and there is none: set RAY_AUTH_TOKEN")


def test_an_address_without_a_cluster_is_refused_with_a_remedy(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    (closed,) = told(dead)
    assert closed == (
        f"the Ray cluster at {dead} does not answer ([Errno 111] Connection refused); is its head up, is this its port?"
    )
    assert told("auto", RAY_ADDRESS=dead) == [closed]
    (client,) = told("ray://127.0.0.1:10001")
    assert "Ray Client is not supported" in client and "winnow submit" in client
    assert "auto (RAY_ADDRESS=ray://" in told("auto", RAY_ADDRESS="ray://127.0.0.1:10001")[0]


@pytest.mark.slow
def test_a_node_with_another_winnow_is_refused_by_name(nodes: Nodes, tmp_path: Path) -> None:
    other = tmp_path / "winnow_corpus-0.0.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: winnow-corpus\nVersion: 0.0.9\n")
    nodes.add("c", PYTHONPATH=str(tmp_path))
    try:
        (line,) = told(nodes.address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    finally:
        nodes.kill("c")
    assert line.startswith("node 127.0.0.1 (") and "is not like this one: winnow-corpus 0.0.9 there and" in line
    assert line.endswith("give all nodes of the cluster the same image")


def test_a_worker_on_a_node_that_came_later_looks_too() -> None:
    here = actor.installed(["winnow-corpus", "pyarrow"])
    with pytest.raises(ValueError, match="^node .* is not like the driver: pyarrow .* there and 0.1 here; give"):
        actor.Actor(b"", {**here, "pyarrow": "0.1"}).setup()
    assert actor.differences(here, here) == ""
    assert actor.differences(here, {}).startswith("Python none there and 3.")


def test_what_an_editor_leaves_is_no_other_winnow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "tasks"
    code.mkdir()
    (code / "__init__.py").write_text("")
    spec = importlib.util.spec_from_file_location("tasks", code / "__init__.py", submodule_search_locations=[str(code)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda room: spec if room == "tasks" else None)
    before = actor.installed([])
    (code / ".__init__.py.swp").write_text("x")
    (code / ".mypy_cache").mkdir()
    (code / ".mypy_cache" / "a.json").write_text("x")
    assert actor.installed([]) == before
    (code / "new.py").write_text("")
    assert actor.installed([]) != before


DRIVE = """
import sys
from pathlib import Path
import tasks.ray_executor as ray_executor
from tasks.ray_cluster import cluster
from tests.nodes import Traced
from tests.tasks.test_ray_cluster import run
ray_executor.LOST_SECONDS = 4.0
try:
    with cluster(sys.argv[1]):
        run(Traced(slow=0.5, trace=sys.argv[4]), Path(sys.argv[2]), Path(sys.argv[3]))
except ray_executor.ClusterLost as error:
    print("lost:", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["its head", "everything"])
def test_a_cluster_that_goes_away_ends_the_run_in_bounded_time(
    what: str, many: Path, trace: Path, tmp_path: Path
) -> None:
    nodes = Nodes()
    nodes.add("a")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVE, nodes.address, str(many), str(tmp_path / "out"), str(trace)],
        env=nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: driver.poll() is not None or traced_on(trace), "the first shard is begun")
        nodes.kill("head")
        if what == "everything":
            nodes.kill("a")
        said, complained = driver.communicate(timeout=80)
    finally:
        driver.kill()
        driver.wait(10)
        nodes.end()
    assert said.startswith(f"lost: the Ray cluster at {nodes.address} has not answered for "), complained[-3000:]
