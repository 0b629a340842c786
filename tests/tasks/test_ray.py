"""The heart of the stage contract on a real Ray: actors in processes of their own, that can die and be killed.

One Ray for all of these, on loopback, with two cores declared; test_stage.py holds the whole contract in process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.base import Resources
from tasks import stages
from tasks.executor import Policy, SetupFailed
from tasks.ray_cluster import cluster
from tasks.ray_executor import ClusterLost, RayPool
from tasks.source import SourceColumns, open_source
from tasks.stage import Bounds, Execution, Executor, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.toys import Crash, DiesInSetup, Length, NoSetup, Picky, Stuck, StuckOnce, documents

RAY = Execution(executor=Executor.RAY, workers=1, policy=Policy(setup_seconds=60.0))


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    with cluster(cpus=2):
        yield


def run(operator: Any, web: Path, root: Path, execution: Execution = RAY, **kwargs: Any) -> StageResult:
    store = Store(str(root))
    source = open_source(str(web), SourceColumns())
    return run_stage(stages.annotate("toy", operator, [source], store), store, execution, **kwargs)


def impatient(stall: float = 1.5, retries: int = 1) -> Execution:
    policy = Policy(retries=retries, stall_seconds=stall, setup_seconds=60.0)
    return Execution(executor=Executor.RAY, workers=1, policy=policy)


def contents(result: StageResult) -> list[str]:
    return [shard.content for shard in result.dataset.shards]


def test_every_row_comes_out_in_order_and_a_second_run_starts_no_worker(web: Path, tmp_path: Path) -> None:
    first = run(Length(), web, tmp_path / "out")
    assert first.summary.status is Status.DONE
    assert first.summary.accounts.rows_in == 30 and first.summary.accounts.closed()
    for shard in first.dataset.shards:
        made, given = pq.read_table(first.dataset.store.absolute(shard.path)), pq.read_table(web / shard.name)
        assert made.column("id").to_pylist() == given.column("id").to_pylist()
        assert made.column("length").to_pylist() == [len(text) for text in given.column("text").to_pylist()]
    again = run(Length(), web, tmp_path / "out")
    assert (again.summary.shards_made, again.summary.shards_before, again.summary.workers) == (0, 3, 0)
    assert again.dataset.version == first.dataset.version


def test_ray_and_threads_and_any_number_of_workers_give_the_same_bytes(web: Path, tmp_path: Path) -> None:
    local = run(Length(), web, tmp_path / "local", Execution(Executor.LOCAL))
    one = run(Length(), web, tmp_path / "one")
    two = run(Length(slow=0.2, batch_size=4), web, tmp_path / "two", Execution(Executor.RAY, workers=2))
    assert contents(local) == contents(one) == contents(two)
    assert (one.summary.workers, two.summary.workers) == (1, 2)
    assert local.summary.fingerprint == one.summary.fingerprint == two.summary.fingerprint


def test_a_poison_row_is_quarantined(web: Path, tmp_path: Path) -> None:
    table = documents(10)
    texts = table.column("text").to_pylist()
    texts[3] = "POISON here"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), web / "part-0.parquet")
    result = run(Picky(), web, tmp_path / "out")
    assert result.summary.status is Status.DONE
    assert result.summary.accounts.outcomes == {"ok": 29, "quarantined": 1} and result.summary.accounts.closed()
    assert result.summary.accounts.reasons == {"ValueError: cannot stomach POISON": 1}


def test_an_error_in_a_worker_comes_back_as_what_it_was(web: Path, tmp_path: Path) -> None:
    result = run(Picky(poison="Document"), web, tmp_path / "out", impatient(stall=30.0, retries=0))
    assert {failure.error for failure in result.summary.failures} == {"ValueError: cannot stomach Document"}
    assert [failure.attempts for failure in result.summary.failures] == [1, 1, 1]


def test_a_shard_that_cannot_be_read_is_not_tried_again(web: Path, tmp_path: Path) -> None:
    (web / "part-1.parquet").write_bytes(b"PAR1 nothing PAR1")
    result = run(Length(), web, tmp_path / "out")
    assert [(failure.shard, failure.attempts) for failure in result.summary.failures] == [("part-1.parquet", 1)]
    assert result.summary.shards_made == 2


def test_a_killed_worker_is_replaced_and_its_shard_made(web: Path, tmp_path: Path) -> None:
    whole = run(Length(), web, tmp_path / "whole", Execution(Executor.LOCAL))
    marker = tmp_path / "died"
    result = run(Crash(where="Document 15 ", marker=str(marker)), web, tmp_path / "out")
    assert marker.exists()
    assert result.summary.status is Status.DONE and result.summary.accounts.closed()
    assert result.summary.shards_made == 3 and result.summary.accounts == whole.summary.accounts


def test_a_shard_that_kills_every_worker_fails_alone(web: Path, tmp_path: Path) -> None:
    result = run(Crash(where="Document 15 "), web, tmp_path / "out", impatient(stall=30.0))
    assert result.summary.status is Status.FAILED and result.summary.shards_made == 2
    (failure,) = result.summary.failures
    assert failure.shard == "part-1.parquet" and failure.attempts == 2
    assert "worker process died" in failure.error and "\n" not in failure.error


def test_a_stuck_worker_is_killed_and_its_shard_made_by_the_next(web: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    marker = tmp_path / "stuck"
    result = run(StuckOnce(where="Document 15 ", marker=str(marker)), web, tmp_path / "out", impatient())
    assert time.monotonic() - began < 40
    assert result.summary.status is Status.DONE and result.summary.shards_made == 3
    stuck = Path("/proc") / marker.read_text()
    while stuck.exists() and time.monotonic() - began < 50:
        time.sleep(0.1)
    assert not stuck.exists(), "the stuck process lives on"


@pytest.mark.slow
def test_a_shard_that_is_always_stuck_fails_within_its_limits_and_the_next_run_makes_it(
    web: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    release = tmp_path / "release"
    stuck = Stuck(where="Document 15 ", release=str(release))
    result = run(stuck, web, tmp_path / "out", impatient(stall=1.0))
    assert time.monotonic() - began < 40
    (failure,) = result.summary.failures
    assert failure.shard == "part-1.parquet" and failure.attempts == 2
    assert "no progress for 1 s, worker killed" in failure.error
    assert result.summary.shards_made == 2
    release.touch()
    mended = run(stuck, web, tmp_path / "out", impatient())
    assert mended.summary.status is Status.DONE
    # a killed process lives for some milliseconds, and in these it may see the release and commit
    assert mended.summary.shards_made + mended.summary.shards_before == 3


def test_a_set_up_that_fails_says_why(web: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="^a worker could not be set up: the model is missing$"):
        run(NoSetup(), web, tmp_path / "out")


def test_a_process_that_ends_during_set_up_is_tried_a_bounded_number_of_times(web: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="could not be set up: worker process died"):
        run(DiesInSetup(), web, tmp_path / "out", impatient())


def test_a_stop_drains_and_the_next_run_goes_on(web: Path, tmp_path: Path) -> None:
    bounds = Bounds()

    def on_progress(progress: Any) -> None:
        if progress.seconds > 1.0:
            bounds.stop("enough")

    result = run(Length(slow=2.5), web, tmp_path / "out", bounds=bounds, on_progress=on_progress)
    assert result.summary.status is Status.BOUNDED and not result.summary.failures
    assert result.summary.shards_made < 3
    rest = run(Length(), web, tmp_path / "out")
    assert rest.summary.status is Status.DONE
    assert rest.summary.shards_made == 3 - result.summary.shards_made


def test_each_stage_has_the_whole_machine_and_leaves_it(web: Path, tmp_path: Path) -> None:
    """Where the operators of a pipeline share the GPUs, each of them leaves some idle."""
    from ray import available_resources

    for offset in range(2):
        wide = Execution(executor=Executor.RAY, policy=Policy(setup_seconds=60.0))
        result = run(Length(offset=offset, slow=0.5), web, tmp_path / "out", wide)
        assert result.summary.workers == 2, "as many as the machine has cores, in every stage"
        assert 0 < result.summary.busy_share <= 1, "and how busy they were is told"
        deadline = time.monotonic() + 20
        while available_resources().get("CPU") != 2:
            assert time.monotonic() < deadline, "workers of the stage before hold their cores"
            time.sleep(0.1)


def test_workers_that_fit_no_machine_are_refused_before_any_starts(web: Path, tmp_path: Path) -> None:
    class Big(Length):
        @property
        def resources(self) -> Resources:
            return Resources(cpus=64)

    with pytest.raises(ValueError, match="64 CPUs and 0 GPUs, and no machine here has them"):
        run(Big(), web, tmp_path / "out")
    assert RayPool(Resources()).capacity(1, 0) == 2
    assert RayPool(Resources()).capacity(1, 1) == 0


def test_a_cluster_inside_a_cluster_is_the_same_one() -> None:
    with cluster(cpus=1):
        assert RayPool(Resources()).capacity(1, 0) == 2
    assert RayPool(Resources()).capacity(1, 0) == 2, "the inner one took the outer one down"


def test_a_ray_without_a_node_is_lost_and_not_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after its raylet was killed between two stages; what a worker wants has nothing to do with it."""
    import ray

    pool, nodes = RayPool(Resources()), ray.nodes()
    assert pool.capacity(1, 0) == 2
    monkeypatch.setattr("tasks.ray_executor.ray.nodes", lambda: [{**one, "Alive": False} for one in nodes])
    with pytest.raises(ClusterLost, match=r"the Ray cluster at 127\.0\.0\.1:\d+ has no node left"):
        pool.capacity(1, 0)
