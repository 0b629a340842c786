"""The quarantine dataset: rows that a stage could not do, with their bytes and the reason, to be retried alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.aligned import QUARANTINED, UPSTREAM
from tasks.commit import Footer, commit_table
from tasks.dataset import Folder
from tasks.records import Record
from tasks.source import ID, RAW
from tasks.store import Store
from tasks.summary import Accounts

QUARANTINE = pa.schema(
    [
        ("shard", pa.string()),
        ("ordinal", pa.int64()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("row", pa.binary()),
    ]
)


RETRIED, RECOVERED = "rows retried", "rows recovered"


def commit_quarantine(
    store: Store,
    folder: Folder,
    table: pa.Table,
    name: str,
    key: str,
    status: Sequence[str],
    reasons: Sequence[str | None],
) -> str:
    """The quarantined rows with their bytes, beside the stage; the empty string where there are none."""
    rows = [row for row, state in enumerate(status) if state == QUARANTINED]
    if not rows:
        return ""
    kept = table.drop_columns([UPSTREAM]).take(pa.array(rows, pa.int64())).to_pylist()
    content = [row.pop(RAW) or orjson.dumps(row, default=str) for row in kept]
    result = pa.table(
        {
            "shard": [name] * len(rows),
            "ordinal": rows,
            "id": [row[ID] for row in kept],
            "reason": [reasons[row] for row in rows],
            "row": content,
        },
        schema=QUARANTINE,
    )
    outcomes = {QUARANTINED: len(rows)}
    accounts = Accounts(rows_in=len(rows), outcomes=outcomes, rows_out=len(rows), outputs=outcomes)
    footer = Footer.of(folder, name, key, accounts)
    which = hashlib.sha256(orjson.dumps([[row, reasons[row]] for row in rows])).hexdigest()
    return commit_table(store, folder.quarantine(name, key, which), result, footer).path


def quarantined_rows(store: Store, record: Record) -> dict[int, str]:
    """Ordinal -> reason of the rows that the shard left in quarantine."""
    if not record.quarantine:
        return {}
    with store.fetched(record.quarantine) as (local, _):
        table = pq.read_table(local, columns=["ordinal", "reason"])
    return dict(zip(table.column("ordinal").to_pylist(), table.column("reason").to_pylist(), strict=True))


def counted(reasons: Sequence[str | None], status: Sequence[str], only: str) -> dict[str, int]:
    found = Counter(reason for reason, state in zip(reasons, status, strict=True) if state == only and reason)
    return dict(sorted(found.items()))


def recovered(before: Record | None, accounts: Accounts) -> dict[str, int]:
    """How many quarantined rows a retry did again and how many it got out of quarantine; empty where it was none."""
    if before is None:
        return {}
    return {RETRIED: before.accounts.quarantined, RECOVERED: before.accounts.quarantined - accounts.quarantined}
