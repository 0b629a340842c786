"""Errors that hold secrets, on a real Ray: what workers raise, and what is left of it. And the search itself."""

from __future__ import annotations

import base64
import gzip
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import stages
from tasks.credentials import given
from tasks.executor import Policy, SetupFailed
from tasks.source import SourceColumns, open_source
from tasks.stage import Execution, Executor, run_stage
from tasks.store import Store
from tests.canaries import canaries, in_bytes, in_folder
from tests.toys import Length, documents

KEY = "cAnary/k3y+of=the engine/7a61"
OWN = "cAnary-of-the-worker's-own-machine-93ab"
PLANTED = canaries(engine_key=KEY, own=OWN)


class Leaky(Length):
    """What it raises holds what it finds in its environment, as errors of libraries may."""

    broken: bool = False

    def setup(self, models: Mapping[str, Path]) -> None:
        os.environ["SOME_SERVICE_TOKEN"] = OWN  # a secret that only this worker's process has
        if self.broken:
            raise ValueError(f"no login with {os.environ['WINNOW_ENGINE_API_KEY']}")

    def __call__(self, table: pa.Table) -> pa.Table:
        if any("POISON" in text for text in table.column("text").to_pylist()):
            key = os.environ["WINNOW_ENGINE_API_KEY"]
            basic = base64.b64encode(f"user:{key}".encode()).decode()
            raise ValueError(
                f"GET /?key={quote(key)} Authorization: Basic {basic} {key!r} {os.environ['SOME_SERVICE_TOKEN']}"
            )
        return super().__call__(table)


@pytest.mark.parametrize("executor", list(Executor))
def test_what_a_worker_raises_leaves_no_secret(
    executor: Executor, web: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    from tasks.ray_cluster import cluster

    table = documents(10)
    texts = table.column("text").to_pylist()
    pq.write_table(table.set_column(1, "text", pa.array([*texts[:9], "POISON"])), web / "part-0.parquet")
    (web / "part-1.parquet").write_bytes(b"no table")
    store = Store(str(tmp_path / "out"))
    source = open_source(str(web), SourceColumns())
    how = Execution(executor=executor, workers=1, policy=Policy(retries=0, setup_seconds=60.0))
    caplog.set_level(logging.DEBUG, "winnow")
    logging.getLogger("winnow").addHandler(caplog.handler)
    try:
        with given({"WINNOW_ENGINE_API_KEY": KEY, "SOME_SERVICE_TOKEN": None}), cluster(cpus=1):
            import ray

            result = run_stage(stages.annotate("toy", Leaky(), [source], store), store, how)
            with pytest.raises(SetupFailed) as told:
                run_stage(stages.annotate("broken", Leaky(broken=True), [source], store), store, how)
            session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
            left, files = in_folder(session, PLANTED)
    finally:
        logging.getLogger("winnow").removeHandler(caplog.handler)
    assert left == [] and files > 3
    assert "no login with ***" in str(told.value)
    left, files = in_folder(tmp_path / "out", PLANTED)
    assert left == [] and files > 3
    (bad,) = (tmp_path / "out" / ".winnow" / "quarantine").rglob("*.parquet")
    (reason,) = pq.read_table(bad).column("reason").to_pylist()
    assert reason.startswith("ValueError: GET /?key=*** Authorization: Basic ") and "***" in reason[40:]
    assert in_bytes(result.summary.model_dump_json().encode(), PLANTED, "summary") == []
    assert in_bytes("".join((*capfd.readouterr(), caplog.text, str(told.value))).encode(), PLANTED, "said") == []
    logged = [str(vars(record)) for record in caplog.records]
    assert logged and in_bytes("".join(logged).encode(), PLANTED, "log") == []


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    """In any dress and packing: a search that finds nothing must be one that could."""
    (one,) = canaries(planted=KEY)
    schema = pa.schema([("a", pa.string())], metadata={b"winnow": f'{{"x": "{KEY}"}}'.encode()})
    pq.write_table(pa.table({"a": [f"so {KEY}!"]}), tmp_path / "column.parquet", compression="zstd")
    pq.write_table(pa.table({"a": ["x"]}, schema=schema), tmp_path / "footer.parquet")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(KEY.encode()))
    (tmp_path / "plain.log").write_text(f"a\n{KEY}\n")
    (tmp_path / "quoted.log").write_text(f"https://host/?key={quote(KEY, safe='')}")
    (tmp_path / "hex.log").write_text(KEY.encode().hex())
    for before in range(4):
        (tmp_path / f"basic-{before}.log").write_text(base64.b64encode(b"u" * before + KEY.encode() + b"tail").decode())
    (tmp_path / "link").symlink_to(f"/nowhere/{KEY.replace('/', '')}")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"named-{OWN}").touch()
    lines, files = in_folder(tmp_path, [one, *canaries(own=OWN)])
    hit = {Path(line.partition(": ")[0].removeprefix("the name ")).name for line in lines}
    assert hit == {
        *("column.parquet", "footer.parquet", "packed.gz", "plain.log", "quoted.log", "hex.log", f"named-{OWN}"),
        *(f"basic-{before}.log" for before in range(4)),
    }
    assert files == len(hit)
    assert in_folder(tmp_path, canaries(other="something-else-entirely"))[0] == []


def test_a_table_that_is_cut_off_is_still_searched(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [KEY]}), tmp_path / "cut.parquet", compression="none")
    whole: Any = (tmp_path / "cut.parquet").read_bytes()
    assert in_bytes(whole[:-10], PLANTED, "cut")
