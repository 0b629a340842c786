"""The completion ledger: what an engine generated once is never paid for again.

A completion is keyed by its request (messages built from the row's content, token limit, seed) under the fingerprint
of engine and sampling; neither the decision that chose the row nor the gates that judge the answer have a part in it.
Blocks lie under ``.winnow/ledger/<engine fingerprint>/<content of the source shard>/``, so looking up a shard reads
its own blocks alone. Blocks of shards that are no longer in the input (*orphans*: a shard that was edited, renamed or
cut anew) are read too.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.language.engine import Completion, FinishReason
from tasks.commit import Footer, commit_table
from tasks.dataset import HIDDEN, KEY_LENGTH
from tasks.store import Store
from tasks.summary import Accounts

BLOCK = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Ledger:
    """``orphans``: folders of shards that left the input and may still hold what its rows need."""

    store: Store
    fingerprint: str
    orphans: tuple[str, ...] = ()
    _index: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def root(self) -> str:
        return f"{HIDDEN}/ledger/{self.fingerprint}"

    def with_orphans(self, contents: Collection[str]) -> Ledger:
        """The ledger as a run over shards with these content hashes sees it."""
        current = {content[:KEY_LENGTH] for content in contents}
        left = tuple(name for name in self.store.folders(self.root) if name not in current)
        return Ledger(self.store, self.fingerprint, left)

    def lookup(self, content: str, keys: Collection[str], name: str) -> dict[str, Completion]:
        """The completions that are there for these keys; own blocks first, orphans only for what is still missing.

        What an orphan had is written to a block of the shard's own, so that nothing needs the orphan any more.
        """
        own = [entry.path for entry in self.store.entries(f"{self.root}/{content[:KEY_LENGTH]}")]
        found = self._read(own, set(keys)) if keys else {}
        missing = set(keys) - found.keys()
        if missing and self.orphans:
            index = self._orphan_index()
            left = self._read(sorted({index[key] for key in missing if key in index}), missing)
            if left:
                self.append(content, name, left)
            found.update(left)
        return found

    def _orphan_index(self) -> dict[str, str]:
        """Key -> block, over all orphans: read once a worker, and of each block its keys alone."""
        if not self._index:
            for folder in self.orphans:
                for entry in self.store.entries(f"{self.root}/{folder}"):
                    with self.store.fs.open(self.store.absolute(entry.path), "rb") as stream:
                        for key in pq.read_table(stream, columns=["key"]).column("key").to_pylist():
                            self._index.setdefault(key, entry.path)
        return self._index

    def append(self, content: str, name: str, completions: Mapping[str, Completion]) -> str:
        """Commits one block of one shard's completions and returns its path."""
        block = uuid.uuid4().hex
        table = pa.Table.from_pylist(
            [
                {
                    "key": key,
                    "text": one.text,
                    "finish_reason": one.finish_reason.value,
                    "prompt_tokens": one.prompt_tokens,
                    "completion_tokens": one.completion_tokens,
                }
                for key, one in completions.items()
            ],
            schema=BLOCK,
        )
        outcomes = {"completed": len(completions)}
        accounts = Accounts(rows_in=len(completions), outcomes=outcomes, rows_out=len(completions), outputs=outcomes)
        footer = Footer(stage="ledger", fingerprint=self.fingerprint, name=name, key=block, accounts=accounts)
        return commit_table(self.store, f"{self.root}/{content[:KEY_LENGTH]}/{block}.parquet", table, footer).path

    def _read(self, blocks: Iterable[str], keys: Collection[str]) -> dict[str, Completion]:
        wanted = pa.array(sorted(keys), pa.string())
        found: dict[str, Completion] = {}
        for path in blocks:
            with self.store.fetched(path) as (local, _):
                table = pq.read_table(local, schema=BLOCK)
            for row in table.filter(pc.is_in(table.column("key"), value_set=wanted)).to_pylist():
                found.setdefault(
                    row["key"],
                    Completion(
                        text=row["text"],
                        finish_reason=FinishReason(row["finish_reason"]),
                        prompt_tokens=row["prompt_tokens"],
                        completion_tokens=row["completion_tokens"],
                    ),
                )
        return found
