"""Uploads that were begun and never finished: a store keeps their parts, bills them, and lists them nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.store import Store, explain


@dataclass(frozen=True, slots=True)
class Upload:
    """``began``: seconds since the epoch. ``bytes``: of the parts that have arrived."""

    path: str
    id: str
    began: float
    bytes: int


def unfinished_uploads(store: Store) -> list[Upload]:
    """Of an S3 store, those below the root; of any other none. Raises StoreError where they may not be listed."""
    if "s3" not in store.fs.protocol:
        return []
    root = store.absolute("")
    bucket, _, prefix = root.partition("/")
    below = f"{prefix}/" if prefix else ""
    try:
        return [
            Upload(one["Key"][len(below) :], one["UploadId"], one["Initiated"].timestamp(), _size(store, bucket, one))
            for one in _listed(store, bucket, below)
        ]
    except Exception as error:
        raise explain(store.url, error) from error


def _listed(store: Store, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    marks: dict[str, str] = {}
    while True:
        answer = store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marks)
        yield from (one for one in answer.get("Uploads", ()) if one["Key"].startswith(prefix))
        if not answer.get("IsTruncated") or not answer.get("NextKeyMarker"):
            return
        marks = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}


def _size(store: Store, bucket: str, upload: dict[str, Any]) -> int:
    """Of the first thousand parts."""
    answer = store.fs.call_s3("list_parts", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return sum(int(part["Size"]) for part in answer.get("Parts", ()))
