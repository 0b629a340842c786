"""Writes an output root as this winnow writes it: what a later winnow, of another record format, has to read.

``python -m tests.formats.write FOLDER``, once for every format and before it changes, then packed as a tar beside this
file. FOLDER gets ``web`` (two shards), ``model`` and ``out``: an annotation with a quarantined row, a rewrite, a build;
of the stage ``tokens`` loose records beside its manifest. FOLDER stands in it, so it should be nobody's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import rewrite
from tasks.commit import remove
from tasks.dataset import Folder
from tasks.records import read_records, write_record
from tasks.runs import REPORTS
from tasks.store import Store
from tests.traced import Paraphraser, curate, row_of, write_model

SHARDS = {"part-0.parquet": range(8), "2026/part-1.parquet": range(8, 18)}


def write_root(folder: Path) -> None:
    for name, rows in SHARDS.items():
        file = folder / "web" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row_of(row) for row in rows]), file)
    model = write_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "load_engine", lambda settings, path: Paraphraser())
        summary = curate(folder / "web", str(folder / "out"), model)
    store = Store(str(folder / "out"))
    (tokens,) = (stage for stage in summary.stages if stage.name == "tokens")
    place = Folder("tokens", tokens.fingerprint)
    for record in read_records(store, place):
        write_record(store, place, record)
    for entry in store.entries(REPORTS):
        remove(store, entry.path)


if __name__ == "__main__":
    write_root(Path(sys.argv[1]))
