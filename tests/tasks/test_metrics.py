"""What a scrape says during and after a run is what the run's accounts say, in process, after failures, and on Ray."""

from __future__ import annotations

import logging
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from operators.base import Annotator
from operators.language.engine import EngineSettings, Sampling
from tasks import metrics, rewrite, stages
from tasks.aligned import Input
from tasks.executor import Policy
from tasks.ledger import Ledger
from tasks.metrics import MOST_REASONS, OTHER, RunMetrics, reason_class
from tasks.observe import Observer, watched_by
from tasks.progress import Progress
from tasks.run import Run
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, run_stage
from tasks.store import Store
from tasks.summary import Accounts, RunSummary, Status
from tests.conftest import free_port
from tests.toys import Crash, FakeEngine, Length, Picky, Reverse, documents

LOCAL = Execution(executor=Executor.LOCAL, policy=Policy(retries=1))
Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Scrape:
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def scrape(port: int) -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parsed(answer.read().decode())


def value(seen: Scrape, name: str, **labels: str) -> float | None:
    return seen.get((name, frozenset(labels.items())))


def by(seen: Scrape, name: str, label: str, **labels: str) -> dict[str, float]:
    """Label value -> figure, of the series that have the other labels."""
    found = {}
    for (one, pairs), figure in seen.items():
        held = dict(pairs)
        if one == name and all(held.get(key) == wanted for key, wanted in labels.items()):
            found[held[label]] = figure
    return found


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    monkeypatch.setenv(metrics.PORT, str(port))
    return port


@pytest.fixture
def poisoned(web: Path) -> Path:
    """``web`` with a row that raises, two that are refused, and one shard that is no Parquet."""
    table = documents(7, 100)
    texts = table.column("text").to_pylist()
    texts[1], texts[3], texts[4] = "POISON here", "REFUSE 1", "REFUSE 2"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), web / "part-3.parquet")
    (web / "part-4.parquet").write_bytes(b"PAR1 no, it is not PAR1")
    return web


def carried_out(operators: dict[str, Annotator], web: Path, out: str, execution: Execution = LOCAL) -> RunSummary:
    """A run of these annotators, as a flow does it but without Prefect."""
    store = Store(out)
    source = open_source(str(web), SourceColumns())
    watching = Observer()
    with watched_by(watching):
        run = Run("toy", {}, str(web), store)
        for name, operator in operators.items():
            stage = stages.annotate(name, operator, [source], store)
            run.add(run_stage(stage, store, execution, watching.bounds, watching.hears))
        return run.finish(1.0)


def same_as_the_summary(seen: Scrape, summary: RunSummary) -> None:
    """Every figure that the summary has too, of every stage, exactly."""
    for stage in summary.stages:
        left = len(stage.failures) + stage.shards_made + stage.shards_before
        shards = {"found": stage.shards_before, "made": stage.shards_made, "failed": len(stage.failures)}
        told = by(seen, "winnow_shards", "state", stage=stage.name)
        assert told == {**shards, "left": sum(told.values()) - left}
        assert by(seen, "winnow_rows_total", "outcome", stage=stage.name) == stage.made.outcomes
        assert by(seen, "winnow_output_rows_total", "status", stage=stage.name) == stage.made.outputs
        assert by(seen, "winnow_tokens_total", "kind", stage=stage.name) == stage.made.tokens
        reasons = by(seen, "winnow_reason_rows_total", "reason", stage=stage.name)
        assert sum(reasons.values()) == sum(stage.made.reasons.values())
        assert value(seen, "winnow_shard_duration_seconds_count", stage=stage.name) == stage.shards_made
        assert value(seen, "winnow_shard_duration_seconds_bucket", stage=stage.name, le="+Inf") == stage.shards_made
        busy = value(seen, "winnow_busy_ratio", stage=stage.name)
        assert (busy or 0.0) == pytest.approx(stage.busy_share, abs=1e-4)
        assert value(seen, "winnow_stage_active", stage=stage.name) == 0
        assert value(seen, "winnow_stage_accounts_open", stage=stage.name) == 0
    assert by(seen, "winnow_run_status", "status") == {
        one: float(one == summary.status.value) for one in ("running", "done", "bounded", "failed")
    }
    infos = [dict(labels) for name, labels in seen if name == "winnow_run_info"]
    assert [one["run_id"] for one in infos] == [summary.run_id]
    assert infos[0]["version"] == summary.versions["winnow-corpus"] and infos[0]["flow"] == summary.flow


def test_after_a_run_with_failures_and_quarantine_the_scrape_is_the_summary(
    poisoned: Path, tmp_path: Path, port: int
) -> None:
    summary = carried_out({"picky": Picky(), "length": Length()}, poisoned, str(tmp_path / "out"))
    seen = scrape(port)
    assert summary.status is Status.FAILED and len(summary.stages[0].failures) == 1
    same_as_the_summary(seen, summary)
    assert by(seen, "winnow_reason_rows_total", "reason", stage="picky") == {"ValueError": 1, "holds REFUSE": 2}
    assert by(seen, "winnow_rows_total", "outcome", stage="picky") == {"ok": 34, "quarantined": 3}
    good = [web for web in sorted(poisoned.glob("*.parquet")) if web.name != "part-4.parquet"]
    read = sum(one.stat().st_size for one in good)
    written = sum(one.stat().st_size for one in (tmp_path / "out" / "picky").rglob("*.parquet"))
    assert value(seen, "winnow_read_bytes_total", stage="picky") == read
    assert value(seen, "winnow_written_bytes_total", stage="picky") == written
    assert abs(time.time() - (value(seen, "winnow_last_progress_timestamp_seconds") or 0)) < 60


def test_a_run_after_it_starts_at_zero_and_says_what_it_found(poisoned: Path, tmp_path: Path, port: int) -> None:
    carried_out({"picky": Picky(), "gone": Length()}, poisoned, str(tmp_path / "out"))
    (poisoned / "part-4.parquet").unlink()
    again = carried_out({"picky": Picky()}, poisoned, str(tmp_path / "out"))
    seen = scrape(port)
    assert again.status is Status.DONE
    same_as_the_summary(seen, again)
    assert by(seen, "winnow_shards", "state") == {"found": 4, "made": 0, "failed": 0, "left": 0}
    assert by(seen, "winnow_rows_total", "outcome") == {}


def scraped_while_running(
    operators: dict[str, Annotator], web: Path, out: str, execution: Execution, port: int
) -> tuple[RunSummary, list[Scrape]]:
    """The run's summary, and what was scraped every 0.3 s while its stage was active."""
    summaries: list[RunSummary] = []
    thread = threading.Thread(target=lambda: summaries.append(carried_out(operators, web, out, execution)), daemon=True)
    thread.start()
    seen: list[Scrape] = []
    while thread.is_alive():
        try:
            seen.append(scrape(port))
        except OSError:
            assert not seen  # before the server is up, and never after
        time.sleep(0.3)
    thread.join(60)
    return summaries[0], [one for one in seen if 1 in by(one, "winnow_stage_active", "stage").values()]


def test_while_a_run_is_going_the_scrape_grows_and_names_the_stage(web: Path, tmp_path: Path, port: int) -> None:
    for shard in range(3, 6):
        pq.write_table(documents(10, shard * 10), web / f"part-{shard}.parquet")
    operators: dict[str, Annotator] = {"slow": Length(slow=0.8)}
    summary, running = scraped_while_running(operators, web, str(tmp_path / "out"), LOCAL, port)
    assert all(value(one, "winnow_run_status", status="running") == 1 for one in running)
    made = [value(one, "winnow_shards", stage="slow", state="made") or 0 for one in running]
    assert made == sorted(made) and made[0] < made[-1] < 7
    etas = [value(one, "winnow_stage_eta_seconds", stage="slow") for one in running]
    assert any(eta is not None and eta > 0 for eta in etas)
    assert any(value(one, "winnow_workers", stage="slow") == 1 for one in running)
    same_as_the_summary(scrape(port), summary)


def test_a_rewrite_counts_what_was_generated_and_what_the_ledger_knew(
    web: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second sampling share asks for more: what the first one generated comes from the ledger."""
    calls = tmp_path / "calls"
    monkeypatch.setattr(rewrite, "load_engine", lambda settings, path: FakeEngine(calls))
    monkeypatch.setattr(rewrite, "resolve", lambda reference: type("Found", (), {"path": tmp_path})())
    store = Store(str(tmp_path / "out"))
    source = open_source(str(web), SourceColumns())
    generated = []
    for share in (0.5, 1.0):
        watching = Observer()
        with watched_by(watching):
            run = Run("toy", {}, str(web), store)
            choice = rewrite.Choice("url", tuple(f"https://example.org/{row}" for row in range(30)), share, 7)
            stage = _rewriting(source, store, choice, tmp_path)
            run.add(run_stage(stage, store, LOCAL, watching.bounds, watching.hears))
            summary = run.finish(1.0)
        seen = scrape(port)
        same_as_the_summary(seen, summary)
        prompts = calls.read_text().splitlines()
        generated.append(prompts)
        hits = value(seen, "winnow_ledger_hits_total", stage="reverse")
        assert hits == (0 if share == 0.5 else len(generated[0]))
        new = prompts[len(generated[0]) :] if share == 1.0 else prompts
        assert value(seen, "winnow_generated_tokens_total", stage="reverse") == sum(len(one.split()) for one in new)
        assert value(seen, "winnow_engine_requests_total", stage="reverse") == len(prompts)
    assert len(generated[1]) > len(generated[0]) > 0


def _rewriting(source: Any, store: Store, choice: rewrite.Choice, folder: Path) -> Any:
    from operators.base import Resources
    from tasks.dataset import Folder
    from tasks.stage import Stage
    from tasks.summary import Shape

    place = Folder("reverse", f"{int(choice.share * 100):012d}")
    ledger = Ledger(store, "f" * 12)
    worker = rewrite.RewriteWorker(
        Reverse(), EngineSettings(model=str(folder)), Sampling(), choice, (Input.of(source),), store, place, ledger
    )
    return Stage(place, Shape.REWRITE, "Reverse", "1", (source,), worker, Resources())


def test_lost_workers_and_retries_are_counted_on_ray(web: Path, tmp_path: Path, port: int) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    from tasks.ray_cluster import cluster

    execution = Execution(executor=Executor.RAY, workers=1, policy=Policy(retries=1, setup_seconds=60.0))
    with cluster(cpus=2):
        crash = Crash(where="Document 12 ", marker=str(tmp_path / "crashed"), slow=0.5)
        summary, running = scraped_while_running({"crash": crash}, web, str(tmp_path / "out"), execution, port)
    lost = [value(one, "winnow_workers_lost_total", stage="crash") for one in running]
    assert lost[0] == 0 and lost[-1] == 1  # seen as it happens
    seen = scrape(port)
    assert summary.status is Status.DONE
    same_as_the_summary(seen, summary)
    assert value(seen, "winnow_workers_lost_total", stage="crash") == 1
    assert value(seen, "winnow_shard_retries_total", stage="crash") == 1
    assert (value(seen, "winnow_worked_rows_total", stage="crash") or 0) >= 20


def test_a_port_that_is_taken_costs_a_warning_and_no_run(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(metrics.PORT, str(port))
        for _ in range(2):
            summary = carried_out({"length": Length()}, web, str(tmp_path / "out"))
            assert summary.status is Status.DONE
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and f"{metrics.PORT}={port}" in said[0] and "goes on without" in said[0]


@pytest.mark.parametrize("wrong", ["soon", "-1", "70000"])
def test_a_port_that_is_none_costs_a_warning_and_no_run(
    wrong: str, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.PORT, wrong)
    assert carried_out({"length": Length()}, web, str(tmp_path / "out")).status is Status.DONE
    assert f"{metrics.PORT}={wrong}" in caplog.text


def test_off_unless_asked(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "start_http_server", lambda *args: pytest.fail("a server was started"))
    monkeypatch.setattr(metrics, "write_to_textfile", lambda *args: pytest.fail("a file was written"))
    for off in ("", "0"):
        monkeypatch.setenv(metrics.PORT, off)
        carried_out({"length": Length()}, web, str(tmp_path / "out"))


def test_the_text_file_holds_the_last_word(poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "winnow.prom"
    monkeypatch.setenv(metrics.FILE, str(file))
    summary = carried_out({"picky": Picky()}, poisoned, str(tmp_path / "out"))
    same_as_the_summary(parsed(file.read_text()), summary)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("winnow.prom")] == ["winnow.prom"]


def test_a_text_file_that_cannot_be_written_costs_a_warning(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.FILE, str(tmp_path / "none" / "winnow.prom"))
    assert carried_out({"length": Length()}, web, str(tmp_path / "out")).status is Status.DONE
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1


def test_names_follow_the_conventions_of_prometheus() -> None:
    families = list(RunMetrics(summary()).collect())
    assert len(families) > 20
    for family in families:
        assert family.name.startswith("winnow_") and family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_kb", "_percent", "_count"))
    assert {family.type for family in families} == {"counter", "gauge", "histogram", "info"}


def test_reasons_are_bounded_and_no_counter_falls() -> None:
    held = RunMetrics(summary())
    before: dict[str, float] = {}
    for step in range(1, 60):
        # what is counted later sorts before what was counted first
        reasons = {f"{chr(97 + number % 26)}{chr(97 + number // 26)} gave up": step for number in range(60 - step, 60)}
        held.observe(Progress("toy", 1, 0, made=1, accounts=Accounts(reasons=reasons), status=None))
        seen: dict[str, float] = {}
        for family in held.collect():
            for sample in family.samples:
                if sample.name == "winnow_reason_rows_total":
                    seen[sample.labels["reason"]] = sample.value
        assert len(seen) <= MOST_REASONS + 1 and sum(seen.values()) == sum(reasons.values())
        assert all(seen[name] >= count for name, count in before.items())
        before = seen
    assert OTHER in before


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ValueError: row 12 is odd", "ValueError"),
        ("text is null", "text is null"),
        ("length ratio 0.31 below 0.5", "length ratio # below #"),
        ("no column 'harm' here", "no column ... here"),
        ("", OTHER),
        ("x" * 500, "x" * 60),
    ],
)
def test_a_class_leaves_out_what_differs_from_row_to_row(reason: str, kind: str) -> None:
    assert reason_class(reason) == kind


def summary() -> RunSummary:
    return RunSummary(run_id="r", flow="toy", started="2026-01-01T00:00:00+00:00", input="in", output="s3://u:p@b/x")


def test_the_output_url_is_shown_without_its_password() -> None:
    info = next(family for family in RunMetrics(summary()).collect() if family.type == "info")
    assert info.samples[0].labels["output"] == "s3://b/x"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own server and its own warnings."""
    monkeypatch.setattr(metrics, "_LATEST", metrics._Latest())
    monkeypatch.delenv(metrics.ADDRESS, raising=False)
    monkeypatch.delenv(metrics.FILE, raising=False)
