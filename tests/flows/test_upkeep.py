"""``winnow retry`` and ``winnow gc`` as a person calls them, on the real flow and a real Prefect server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.demo_source import documents
from operators.language.identify import LanguageId
from tasks.dataset import HIDDEN
from tasks.runs import last_run, save_run
from tasks.store import Store
from tasks.summary import Status
from tests.upkept import KEEP, Place, sentence

pytestmark = pytest.mark.timeout(600)
ROWS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def winnow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the command line in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["winnow", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(str(caught.value.code)), out, err

    return call


def write_web(folder: Path) -> Path:
    """A healthy shard, one with a line that is no JSON and never will be, one that is no Parquet file yet."""
    folder.mkdir()
    rows = [row for row in documents() if len(row["text"]) < 1500][: 3 * ROWS]
    pq.write_table(pa.Table.from_pylist(rows[:ROWS]), folder / "web-0.parquet")
    lines = [json.dumps(row) for row in rows[ROWS : 2 * ROWS]]
    (folder / "web-1.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    pq.write_table(pa.Table.from_pylist(rows[2 * ROWS :]), folder.parent / "whole.parquet")
    (folder / "web-2.parquet").write_bytes((folder.parent / "whole.parquet").read_bytes()[:-100])
    return folder


@pytest.mark.slow
def test_a_life_of_retries_and_collections(
    server: None, winnow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, output = write_web(tmp_path / "web"), str(tmp_path / "out")
    flags = [f"--input={web}", f"--output={output}", "--executor=local", "--no-rephrase", "--retries=0"]
    flags += ["--shard-tokens=4000", "--max-quarantine=0.2", "--keep=lang_score >= 0"]
    identify, given = LanguageId.__call__, []

    def moody(self: LanguageId, table: pa.Table) -> pa.Table:
        texts = table.column("text").to_pylist()
        given.extend(texts)
        if ill & {text[:20] for text in texts}:
            raise ValueError("the moon is wrong")
        return identify(self, table)

    monkeypatch.setattr(LanguageId, "__call__", moody)
    poison = pq.read_table(web / "web-0.parquet").column("text").to_pylist()[3]
    ill = {poison[:20]}

    code, _, err = winnow("retry", output)
    assert code == 2 and "no run has ended here" in err
    code, out, _ = winnow("curate-text", *flags)
    assert code == 1 and "web-2.parquet" in out

    # nothing is cured: nothing changes, and it says so
    code, out, _ = winnow("retry", output)
    assert code == 1 and "the retry changed nothing: the same rows and shards failed again" in out
    assert all(len(line) <= 80 for line in out.splitlines() if output not in line and str(web) not in line), out

    ill.clear()
    (web / "web-2.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes())
    given.clear()
    code, out, err = winnow("retry", output, "--json")
    told = json.loads(out)
    assert code == 0, (out, err)
    assert sorted(given) == sorted([poison, *pq.read_table(web / "web-2.parquet").column("text").to_pylist()])
    language = next(one for one in told["retry"]["stages"] if one["stage"] == "language")
    assert language["quarantined_before"] == 2 and language["quarantined"] == 1
    assert language["failed_before"] == 1 and language["failed"] == 0
    assert told["retry"]["changed"] and told["run"]["retry_of"] == told["retry"]["retry_of"]
    code, out, _ = winnow("verify", output)
    assert code == 0, out

    # what is no JSON stays so
    code, out, _ = winnow("retry", output)
    assert code == 1 and "changed nothing" in out and "language" in out

    pq.write_table(pq.read_table(web / "web-2.parquet").slice(0, 5), web / "web-2.parquet")
    code, _, err = winnow("retry", output)
    assert code == 2 and "web-2.parquet: new or changed since run" in err and err.count("\n") == 1
    assert winnow("curate-text", *flags)[0] == 0

    before = sorted(entry.path for entry in Store(output).entries())
    code, out, _ = winnow("gc", output)
    assert code == 0 and "nothing was deleted: --delete does it, and keeps the latest version" in out
    assert sorted(entry.path for entry in Store(output).entries()) == before
    assert all(len(line) <= 80 for line in out.splitlines() if output not in line), out
    code, out, _ = winnow("gc", output, "--json")
    listed = json.loads(out)
    assert code == 0 and not listed["deleted"] and listed["files"] + len(listed["items"]) == len(before)
    code, out, err = winnow("gc", output, "--delete")
    assert code == 0 and out.rstrip().endswith("deleted") and err == ""
    assert len(Store(output).entries()) == listed["files"]
    assert winnow("verify", output)[0] == 0
    code, out, _ = winnow("curate-text", *flags, "--json")
    assert code == 0 and not json.loads(out)["work_done"]
    code, out, _ = winnow("gc", output, "--delete")
    assert code == 0 and "nothing to delete" in out


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, str(tmp_path / "store"))
    for shard in range(2):
        place.write(f"part-{shard}", [sentence(shard * 10 + row) for row in range(4)])
    return place


def test_nothing_to_retry_is_said(winnow: Any, place: Place) -> None:
    run = place.curate()
    code, out, _ = winnow("retry", place.root)
    assert code == 0
    assert " ".join(out.split()) == f"nothing to retry: run {run.run_id} left no row in quarantine and no failed shard"
    code, out, _ = winnow("retry", place.root, "--json")
    assert code == 0 and json.loads(out)["run"] is None
    newest = last_run(place.store)
    assert newest is not None and newest.run_id == run.run_id


def test_what_cannot_be_retried_is_refused_in_one_line(winnow: Any, place: Place) -> None:
    code, out, err = winnow("retry", place.root)
    assert (code, out) == (2, "") and "no run has ended here" in err and err.count("\n") == 1
    place.write("part-0", [sentence(1, "POISON"), sentence(2)])
    run = place.curate()
    code, _, err = winnow("retry", place.root)
    assert code == 2 and err == f"winnow: run {run.run_id} is one of toy, which cannot be retried\n"
    save_run(place.store, run.model_copy(update={"run_id": "20300101T000000-000000", "status": Status.BOUNDED}))
    code, _, err = winnow("retry", place.root)
    assert code == 2 and "did not come to its end" in err and "finish it first, by its own command" in err
    # a retry that was cut off is gone on with: it is still the first run's
    cut = {"run_id": "20300101T000001-000000", "status": Status.BOUNDED, "retry_of": run.run_id}
    save_run(place.store, run.model_copy(update=cut))
    code, _, err = winnow("retry", place.root)
    assert code == 2 and f"run {run.run_id} is one of toy" in err


def test_gc_lists_and_then_deletes(winnow: Any, place: Place) -> None:
    place.curate()
    last = place.curate(keep=f"{KEEP} AND tokens > 5")
    before = sorted(entry.path for entry in place.store.entries())
    code, out, err = winnow("gc", place.root)
    assert (code, err) == (0, "")
    assert "nothing was deleted: --delete does it, and keeps the latest version" in out and last.corpus in out
    assert all(len(line) <= 80 for line in out.splitlines() if place.root not in line), out
    code, out, _ = winnow("gc", place.root, "--json")
    listed = json.loads(out)
    assert code == 0 and not listed["deleted"] and listed["files"] + len(listed["items"]) == len(before)
    assert sorted(entry.path for entry in place.store.entries()) == before
    code, out, _ = winnow("gc", place.root, "--keep=2")
    assert code == 0 and "nothing to delete" in out
    code, out, err = winnow("gc", place.root, "--delete")
    assert (code, err) == (0, "") and out.rstrip().endswith("deleted")
    assert len(place.store.entries()) == listed["files"]
    assert winnow("verify", place.root)[0] == 0


def test_gc_refuses_beside_a_run(winnow: Any, place: Place) -> None:
    place.curate()
    note = {"run_id": "20300101T000000-000000", "began": "2030-01-01", "machine": "another-1", "process": "1-1"}
    (Path(place.root) / HIDDEN / "running" / f"{note['run_id']}.json").write_text(json.dumps(note))
    place.curate(keep=f"{KEEP} AND tokens > 5")
    code, out, _ = winnow("gc", place.root)
    assert code == 0 and f"run {note['run_id']} is at work since 2030-01-01" in out
    before = place.store.entries()
    code, out, err = winnow("gc", place.root, "--delete")
    assert (code, out) == (2, "") and "wait for it to end" in err and err.count("\n") == 1
    assert place.store.entries() == before


def test_gc_refuses_what_is_no_root(winnow: Any, tmp_path: Path) -> None:
    code, out, err = winnow("gc", str(tmp_path))
    assert (code, out) == (2, "") and "holds no winnow run" in err
    code, _, err = winnow("gc", "s3://", "--delete")
    assert code == 2 and err.count("\n") == 1
