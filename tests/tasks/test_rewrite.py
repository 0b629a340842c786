"""The rewrite shape on a local folder and on S3: ledger, sampling, gates, errors, drains. The engine is a named fake
whose calls can be counted; tests/flows run the real one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from operators.language.engine import EngineSettings, Sampling
from operators.route import Route
from tasks import generation, rewrite, stages
from tasks.executor import Policy
from tasks.rewrite import Choice
from tasks.source import SourceColumns, open_source
from tasks.stage import Bounds, Execution, Executor, StageResult, run_stage
from tasks.store import Store
from tasks.summary import Status
from tests.toys import FakeEngine, Length, Reverse, documents

LOCAL = Execution(executor=Executor.LOCAL)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "calls.txt"
    file.touch()
    monkeypatch.setattr(rewrite, "load_engine", lambda settings, folder: FakeEngine(file))
    return file


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


def chain(
    web: Path,
    root: str,
    model: str,
    keep: str = "length > 0",
    rewriter: Reverse | None = None,
    share: float = 1.0,
    execution: Execution = LOCAL,
    sampling: Sampling | None = None,
    bounds: Bounds | None = None,
) -> StageResult:
    """length -> route -> rewrite of what the route keeps."""
    store = Store(root)
    source = open_source(str(web), SourceColumns())
    length = run_stage(stages.annotate("length", Length(), [source], store), store, LOCAL)
    source = source.with_contents(length.contents())
    route = Route(routes=(("keep", keep),))
    routes = run_stage(stages.annotate("route", route, [length.dataset], store), store, LOCAL)
    stage = stages.rewrite(
        "reverse",
        rewriter or Reverse(),
        EngineSettings(model=model, kind="transformers"),
        sampling or Sampling(),
        Choice("route", ("keep",), share, seed=0),
        [source, routes.dataset],
        store,
    )
    return run_stage(stage, store, execution, bounds)


def rows(result: StageResult) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for shard in result.dataset.shards:
        with result.dataset.store.fetched(shard.path) as (local, _):
            found += pq.read_table(local).to_pylist()
    return found


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_every_sentence_is_rewritten_and_names_its_parent(web: Path, root: str, model: str, calls: Path) -> None:
    result = chain(web, root, model)
    made = rows(result)
    assert result.summary.status is Status.DONE and result.summary.accounts.closed()
    assert result.summary.accounts.outcomes == {"rewritten": 30}
    assert len(made) == count(calls) == 60
    one = made[0]
    assert (one["id"], one["parent_id"], one["source_shard"], one["source_ordinal"]) == (
        "doc-0/reverse-0",
        "doc-0",
        "part-0.parquet",
        0,
    )
    assert one["text"][::-1].startswith("Document 0 tells")


def test_a_changed_threshold_generates_nothing_that_was_generated_before(
    web: Path, root: str, model: str, calls: Path
) -> None:
    few = chain(web, root, model, keep="length > 71")
    first = count(calls)
    assert 0 < first < 60
    everything = chain(web, root, model)
    assert count(calls) == 60, "what the first run generated was generated again"
    assert everything.summary.notes["generated"] == 60 - first
    assert few.summary.folder != everything.summary.folder, "a folder would hold the rows of two decisions"
    chain(web, root, model, keep="length > 72")
    assert count(calls) == 60


def test_gates_and_samples_change_without_generating_sampling_does_not(
    web: Path, root: str, model: str, calls: Path
) -> None:
    chain(web, root, model)
    gated = chain(web, root, model, rewriter=Reverse(shortest=30))
    sampled = chain(web, root, model, share=0.5)
    assert count(calls) == 60
    assert gated.summary.accounts.outputs == {"ok": 30, "rejected": 30}
    assert gated.summary.accounts.reasons == {"too short": 30}
    assert 10 < sampled.summary.accounts.rows_out < 50
    chain(web, root, model, sampling=Sampling(max_tokens=7))
    assert count(calls) == 120


def test_a_renamed_and_an_edited_shard_pay_for_new_rows_only(web: Path, root: str, model: str, calls: Path) -> None:
    chain(web, root, model)
    (web / "part-1.parquet").rename(web / "renamed.parquet")
    pq.write_table(documents(12, 20), web / "part-2.parquet")
    result = chain(web, root, model)
    assert result.summary.accounts.rows_in == 32
    assert count(calls) == 60 + 2 * 2


def test_a_request_that_the_engine_refuses_quarantines_its_row(web: Path, root: str, model: str, calls: Path) -> None:
    table = documents(10)
    texts = table.column("text").to_pylist()
    texts[4] = "FAIL this one. The second sentence works."
    pq.write_table(table.set_column(1, "text", [texts]), web / "part-0.parquet")
    result = chain(web, root, model)
    assert result.summary.accounts.outcomes == {"quarantined": 1, "rewritten": 29}
    assert result.summary.accounts.reasons == {"engine refused the prompt": 1}
    assert result.summary.accounts.closed()
    assert not [row for row in rows(result) if row["parent_id"] == "doc-4"]


def test_a_drained_run_keeps_what_was_paid_for(
    web: Path, root: str, model: str, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "load_engine", lambda settings, folder: FakeEngine(calls, delay=0.1))
    bounds = Bounds(max_tokens=150)
    result = chain(web, root, model, bounds=bounds)
    assert result.summary.status is Status.BOUNDED and bounds.reason == "--max-tokens was reached"
    paid = count(calls)
    assert 0 < paid < 60
    rest = chain(web, root, model)
    assert rest.summary.status is Status.DONE
    assert Counter(calls.read_text().splitlines()).most_common(1)[0][1] == 1, "a completion was paid for twice"


def test_an_engine_that_dies_is_replaced_and_its_completions_stay_paid(
    web: Path, root: str, model: str, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(FakeEngine):
        def generate(self, requests: Any, sampling: Sampling) -> Any:
            for number, pair in enumerate(super().generate(requests, sampling)):
                if number == 25 and not (self.calls.parent / "died").exists():
                    (self.calls.parent / "died").touch()
                    raise RuntimeError("CUDA error: device-side assert triggered")
                yield pair

    monkeypatch.setattr(rewrite, "load_engine", lambda settings, folder: Dying(calls))
    monkeypatch.setattr(generation, "BLOCK_REQUESTS", 4)
    result = chain(web, root, model, execution=Execution(Executor.LOCAL, policy=Policy(retries=2)))
    assert result.summary.status is Status.DONE
    assert (calls.parent / "died").exists()
    assert count(calls) - 60 <= 4 + 1, "more than one block was generated twice"


def test_two_workers_give_the_same_bytes_as_one(web: Path, root: str, model: str, calls: Path) -> None:
    one = chain(web, f"{root}/one", model)
    two = chain(web, f"{root}/two", model, execution=Execution(Executor.LOCAL, workers=2))
    assert [shard.content for shard in one.dataset.shards] == [shard.content for shard in two.dataset.shards]


def test_another_model_generates_anew_and_leaves_the_annotations_alone(
    web: Path, root: str, model: str, calls: Path, tmp_path: Path
) -> None:
    chain(web, root, model)
    before = {
        entry.path: entry.token for entry in Store(root).entries() if entry.path.startswith(("length/", "route/"))
    }
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"other weights")
    result = chain(web, root, str(other))
    assert count(calls) == 120
    assert result.summary.shards_made == 3
    after = {entry.path: entry.token for entry in Store(root).entries() if entry.path.startswith(("length/", "route/"))}
    assert after == before
    moved = tmp_path / "moved"
    other.rename(moved)
    assert chain(web, root, str(moved)).summary.shards_made == 0, "a model that moved is the same model"
    assert count(calls) == 120
