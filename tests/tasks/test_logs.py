"""The log of a run: which events there are, every line JSON, no credential in it, and Prefect's share of it."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks import logs
from tasks.executor import Policy
from tasks.run import Run
from tasks.stage import Bounds, Execution, Executor
from tests.tasks.test_metrics import LOCAL, carried_out
from tests.tasks.test_stage import run
from tests.toys import Length, Picky, Stuck, documents


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "json")
    monkeypatch.delenv(logs.LEVEL, raising=False)


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Every line of standard error; one that is no JSON object fails."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(isinstance(one, dict) and {"time", "level", "event", "message"} <= one.keys() for one in found)
    return found


@pytest.mark.usefixtures("as_json")
def test_a_run_tells_its_beginning_its_stages_its_failures_and_its_end(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (web / "part-3.parquet").write_bytes(b"PAR1 no, it is not PAR1")
    with logs.on_stderr():
        summary = carried_out({"picky": Picky(poison="Document"), "length": Length()}, web, str(tmp_path / "out"))
    found = events(capsys)
    kinds = [one["event"] for one in found]
    assert kinds[0] == "run_began" and kinds[-1] == "run_ended"
    assert {one["run_id"] for one in found} == {summary.run_id}
    assert [one["stage"] for one in found if one["event"] == "stage_began"] == ["picky", "length"]
    # every row of picky raises, so its shards fail and are tried again; the broken file is not
    retried = [one for one in found if one["event"] == "shard_retried"]
    assert sorted(one["shard"] for one in retried) == [f"part-{n}.parquet" for n in range(3)]
    assert all(one["attempt"] == 1 and one["level"] == "warning" and one["worker"] == 1 for one in retried)
    failed = [one for one in found if one["event"] == "shard_failed"]
    assert len(failed) == 4 + 1 and {one["attempt"] for one in failed if one["shard"] != "part-3.parquet"} == {2}
    assert all(one["error"] and one["level"] == "error" for one in failed)
    ended = {one["stage"]: one for one in found if one["event"] == "stage_ended"}
    for stage in summary.stages:
        told = ended[stage.name]
        assert told["accounts"] == stage.accounts.model_dump(exclude={"reasons"}) and told["closed"] is True
        assert (told["shards_made"], told["shards_failed"]) == (stage.shards_made, len(stage.failures))
        assert told["retries"] == (3 if stage.name == "picky" else 0)
    assert sum(one["event"] == "stage_in_trouble" for one in found) == 2
    assert found[-1]["status"] == "failed" and found[-1]["messages"] == summary.messages


@pytest.mark.usefixtures("as_json")
def test_too_much_quarantine_is_an_event(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Run.finish
    for limit in (0.5, 0.1):
        monkeypatch.setattr(Run, "finish", lambda run, _, limit=limit: finish(run, limit))
        with logs.on_stderr():
            carried_out({"picky": Picky(refuse="Document 1")}, web, str(tmp_path / "out"))
        told = [one for one in events(capsys) if one["event"] == "stage_in_trouble"]
        assert [one["stage"] for one in told] == ([] if limit == 0.5 else ["picky"])
    assert "11 of 30 rows quarantined" in told[0]["message"] and told[0]["level"] == "error"


@pytest.mark.usefixtures("as_json")
def test_a_lost_worker_and_a_drain_are_events(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = tmp_path / "release"
    patient = Execution(executor=Executor.LOCAL, policy=Policy(retries=0, stall_seconds=1.0))
    with logs.on_stderr():
        run(Stuck(where="Document 12 ", release=str(release)), web, str(tmp_path / "out"), patient)
        release.touch()
        bounds = Bounds()
        threading.Timer(0.5, lambda: bounds.stop("enough")).start()
        run(Length(slow=0.8), web, str(tmp_path / "slow"), LOCAL, bounds=bounds)
    found = events(capsys)
    lost = [one for one in found if one["event"] == "worker_lost"]
    assert [(one["worker"], one["level"]) for one in lost] == [(1, "warning")] and "no progress" in lost[0]["error"]
    drained = [one for one in found if one["event"] == "draining"]
    assert [one["stage"] for one in drained] == ["toy"]
    ended = [one for one in found if one["event"] == "stage_ended"]
    assert [one["status"] for one in ended] == ["failed", "bounded"]


@pytest.mark.usefixtures("as_json")
def test_what_others_print_to_standard_error_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    """torch and Prefect have handlers of their own, which were given the stream."""
    with logs.on_stderr():
        own = logging.StreamHandler()
        print("half a ", end="", file=sys.stderr)
        print("line\n\nand one of s3://user:hunter2@bucket", file=sys.stderr)
        own.emit(logging.makeLogRecord({"msg": "W1124 no Triton"}))
    found = events(capsys)
    assert [one["message"] for one in found] == ["half a line", "and one of s3://bucket", "W1124 no Triton"]
    assert {one["event"] for one in found} == {"stderr"}
    print("plain again", file=sys.stderr)
    assert capsys.readouterr().err == "plain again\n"


@pytest.mark.usefixtures("as_json")
def test_what_others_log_is_json_too_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.on_stderr():
        logging.getLogger("botocore").warning("retrying %s", "https://key:pw@host/x")
        logging.getLogger("botocore").info("not told")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", UserWarning, stacklevel=1)
        try:
            raise ValueError("s3://user:hunter2@bucket")
        except ValueError:
            logging.getLogger("other").exception("it broke")
    found = events(capsys)
    assert [one.get("logger") for one in found] == ["botocore", "py.warnings", "other"]
    assert found[0]["message"] == "retrying https://host/x"
    assert "Traceback" in found[2]["exc_info"] and "hunter2" not in json.dumps(found)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("s3://user:hunter2@bucket/x", "s3://bucket/x"),
        ("GET https://h/x?X-Amz-Signature=hunter2&part=3", "GET https://h/x?X-Amz-Signature=***&part=3"),
        ("https://h/x?api_key=hunter2 failed", "https://h/x?api_key=*** failed"),
        ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
        ("key sk-hunter2hunter2 refused", "key sk-*** refused"),
        ("part-3.parquet: risk-based, 5 tokens", "part-3.parquet: risk-based, 5 tokens"),
    ],
)
def test_credentials_are_taken_out_for_every_handler(told: str, kept: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "winnow"):
        logs.event("shard_failed", told, error=told, shard="a")
        logging.getLogger("winnow").warning("it was %s", told)
    record = caplog.records[0]
    assert record.getMessage() == kept and vars(record)["error"] == kept
    assert caplog.records[1].getMessage() == f"it was {kept}"


def test_text_is_one_dated_line_with_its_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(logs.FORMAT, raising=False)
    monkeypatch.delenv(logs.LEVEL, raising=False)
    with logs.on_stderr():
        logs.event("stage_began", "toy: 3 shards to do", stage="toy")
        logs.event("shard_failed", "part-1 failed", logging.ERROR, stage="toy", shard="part-1")
        logs.event("stage_ended", "toy: failed", logging.WARNING, stage="toy")  # the display says it
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["ERROR toy: part-1 failed"]
    monkeypatch.setenv(logs.LEVEL, "nonsense")
    with logs.on_stderr():  # a worker's process has nobody to refuse it
        logging.getLogger("botocore").warning("slow")
        logging.getLogger("prefect.task_runs").warning("what was told already")
    assert capsys.readouterr().err.rstrip().endswith(" WARNING botocore: slow")
    monkeypatch.setenv(logs.LEVEL, "info")
    with logs.on_stderr():
        logs.event("stage_began", "toy: 3 shards to do", stage="toy")
        logs.event("stage_ended", "toy: failed", logging.WARNING, stage="toy")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO toy: 3 shards to do", "WARNING toy: failed"]


def test_afterwards_logging_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT, "json")
    root = logging.getLogger()
    before = (logs.LOG.level, logs.LOG.propagate, logs.LOG.handlers[:], root.handlers[:], root.level)
    with logs.on_stderr(), logs.on_stderr():
        assert len(logs.LOG.handlers) == len(before[2]) + 1  # once, however deep
    assert (logs.LOG.level, logs.LOG.propagate, logs.LOG.handlers[:], root.handlers[:], root.level) == before


@pytest.mark.timeout(300)
def test_prefects_run_log_has_the_events_and_a_bounded_number(tmp_path: Path) -> None:
    """A real server: what its UI would show of a stage in which 30 shards fail."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.testing.utilities import prefect_test_harness

    from tasks import stages
    from tasks.prefect_stage import MOST_EVENTS, run_log, stage_task
    from tasks.source import SourceColumns, open_source
    from tasks.store import Store

    web = tmp_path / "web"
    web.mkdir()
    for shard in range(30):
        (web / f"part-{shard}.parquet").write_bytes(b"PAR1 no, it is not PAR1")
    pq.write_table(documents(10), web / "fine.parquet")
    store, seen = Store(str(tmp_path / "out")), []

    @flow(name="toy")
    def toy() -> None:
        from prefect.runtime import flow_run

        seen.append(flow_run.get_id())
        with run_log():
            stage = stages.annotate("toy", Length(), [open_source(str(web), SourceColumns())], store)
            stage_task(stage, store, LOCAL)
            logs.event("run_ended", "run ended failed", logging.ERROR)

    with prefect_test_harness(server_startup_timeout=120):
        toy()
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=seen))
        deadline, said = time.monotonic() + 60, []
        while time.monotonic() < deadline and not any("run ended failed" in one for one in said):
            with get_client(sync_client=True) as client:
                said = [one.message for one in client.read_logs(wanted, limit=200)]
            time.sleep(0.5)
    assert sum("is left out: " in one for one in said) == MOST_EVENTS
    assert sum("further events 'shard_failed' are left out here" in one for one in said) == 1
    assert any(one.startswith("toy: failed, 1 shards made, 0 found, 30 failed") for one in said)
    assert "toy: 31 shards to do, 0 found finished" in said and "run ended failed" in said
