"""Create-once commits: the only module that writes to storage.

A shard is written whole to a temporary file, then created under its final name if and only if nothing stands there (S3
``If-None-Match: *``, locally write, fsync, link). Its accounts and shard key stand in the Parquet footer, so that
whoever finds the name taken, or never hears the answer, reads the footer: the same shard key is the same bytes, which
are adopted; anything else stops the shard and says so.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError
from pydantic import BaseModel, ConfigDict

from tasks.dataset import HIDDEN, Folder
from tasks.store import Store, StoreError, explain, sha256_of, spool_full
from tasks.summary import Accounts

FOOTER = b"winnow"
FOOTER_VERSION = 1
ROW_GROUP_ROWS = 16384
TEMPORARY = f"{HIDDEN}/tmp"
CONFLICT_RETRIES = 6
LARGEST_PUT = 5 << 30
"""S3's limit for one PUT, in bytes. A shard is never uploaded in parts: PUT is the request whose condition every store
that has one decides atomically, while SeaweedFS 4.48 let two writers complete the same name in 2 of 40 races."""
PUT_SECONDS = 120.0
SLOWEST_UPLOAD = 1 << 20
"""Bytes a second, beyond PUT_SECONDS. The client's own limits begin once a body is sent, and before it is it waits for
the server's leave (``Expect: 100-continue``): a server that stands still would be waited for without end."""


class CommitConflict(RuntimeError):
    """Something else stands under the name of a shard. Never overwritten: a person has to look."""


class Footer(BaseModel):
    """What the Parquet footer says of its own file (key-value metadata ``winnow``); no times, so bytes repeat."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FOOTER_VERSION
    stage: str
    fingerprint: str
    name: str
    key: str
    accounts: Accounts
    quarantine: str = ""

    @classmethod
    def of(cls, folder: Folder, name: str, key: str, accounts: Accounts, quarantine: str = "") -> Footer:
        return cls(
            stage=folder.stage,
            fingerprint=folder.fingerprint,
            name=name,
            key=key,
            accounts=accounts,
            quarantine=quarantine,
        )


@dataclass(frozen=True, slots=True)
class Committed:
    """A Parquet file that stands under its final name. ``adopted``: it stood there before."""

    path: str
    sha256: str
    bytes: int
    rows: int
    footer: Footer
    adopted: bool


def commit_table(
    store: Store, path: str, table: pa.Table, footer: Footer, row_group_rows: int = ROW_GROUP_ROWS
) -> Committed:
    """Creates the Parquet file of one shard, or adopts the one that stands there under the same shard key."""
    with _temporary(store) as temporary:
        metadata = {**(table.schema.metadata or {}), FOOTER: orjson.dumps(footer.model_dump())}
        pq.write_table(
            table.replace_schema_metadata(metadata), temporary, compression="zstd", row_group_size=row_group_rows
        )
        with temporary.open("rb") as stream:
            digest = sha256_of(stream)
        size = temporary.stat().st_size
        if _create_from(store, path, temporary):
            return Committed(path, digest, size, table.num_rows, footer, adopted=False)
    standing = adopt(store, path, footer.key)
    if standing is None:
        raise StoreError(f"{store.url_of(path)}: could not be created and is not there; run the same command again")
    return standing


def adopt(store: Store, path: str, key: str) -> Committed | None:
    """The shard that stands under ``path`` if it is ours by shard key, None where nothing stands there.

    Raises CommitConflict where something else does.
    """
    if store.entry(path) is None:
        return None
    with store.fetched(path) as (local, digest):
        footer = read_footer(local)
        if footer is None or footer.key != key:
            held = "no winnow footer" if footer is None else f"shard key {footer.key[:12]}"
            raise CommitConflict(
                f"{store.url_of(path)}: holds something else ({held}, expected {key[:12]}); move it away and run again"
            )
        return Committed(path, digest, local.stat().st_size, pq.read_metadata(local).num_rows, footer, adopted=True)


def read_footer(file: Path) -> Footer | None:
    """The footer that winnow wrote, None for a file that is not ours. Raises StoreError for an unreadable one."""
    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{file.name}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    raw = metadata.get(FOOTER)
    if raw is None:
        return None
    try:
        return Footer.model_validate(orjson.loads(raw))
    except ValueError as error:  # pydantic's and orjson's alike
        raise StoreError(
            f"{file.name}: its footer is of another winnow (this one writes format {FOOTER_VERSION}); use the newer one"
        ) from error


def create(store: Store, path: str, data: bytes) -> bool:
    """Creates a small object once. False where the name is taken already (its content is not looked at)."""
    with _temporary(store) as temporary:
        temporary.write_bytes(data)
        return _create_from(store, path, temporary)


def remove(store: Store, path: str) -> None:
    """Removes one object; it may be gone already."""
    try:
        store.fs.rm_file(store.absolute(path))
    except FileNotFoundError:
        return
    except Exception as error:
        raise explain(store.url_of(path), error) from error


def abort_upload(store: Store, path: str, upload: str) -> None:
    """Gives up an upload to an S3 store that was never finished; its parts are gone then. It may be gone already."""
    bucket, _, key = store.absolute(path).partition("/")
    try:
        store.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
    except FileNotFoundError:
        return
    except Exception as error:
        if _s3_code(error) == "NoSuchUpload":
            return
        raise explain(store.url_of(path), error) from error


def remove_empty_folders(store: Store, paths: Iterable[str]) -> None:
    """Removes what is empty of these folders and then of those above them, up to the root. Object stores have none."""
    if not store.local:
        return
    root = Path(store.absolute(""))
    for path in paths:
        folder = root / path
        while folder != root and root in folder.parents:
            try:
                if folder.exists():  # where it is gone already, the one above may be empty too
                    folder.rmdir()
            except OSError:
                break  # something is in it
            folder = folder.parent


def probe(store: Store, single_writer: bool) -> None:
    """Writes a probe twice: the store must take the first and refuse the second, else it cannot keep two writers apart.

    Raises StoreError with the remedy; a store that ignores the condition passes only with ``single_writer``.
    """
    path = f"{HIDDEN}/probe/{uuid.uuid4().hex}"
    try:
        if not create(store, path, b"1"):
            raise StoreError(f"{store.url}: refuses to create a new object")
        refused = not create(store, path, b"2")
    finally:
        remove(store, path)
    if not refused and not single_writer:
        raise StoreError(
            f"{store.url}: this store ignores conditional writes, so two runs could overwrite each other; "
            "make sure only one run writes here and say so with --single-writer"
        )


def _create_from(store: Store, path: str, file: Path) -> bool:
    final = store.absolute(path)
    try:
        if store.local:
            return _link(file, Path(final))
        if not _conditional(store):
            store.fs.put_file(str(file), final)
            return True
        return _put_once(store, file, final)
    except Exception as error:
        raise explain(store.url_of(path), error) from error


def _put_once(store: Store, file: Path, final: str) -> bool:
    whole: dict[str, Any] = {}
    if "s3" in store.fs.protocol:
        whole["chunksize"] = LARGEST_PUT
        if file.stat().st_size >= LARGEST_PUT:
            raise StoreError(
                f"{store.url}: {final.rsplit('/', 1)[-1]} would be {file.stat().st_size:,} bytes, more than one "
                "request to S3 may hold (5 GiB); give it smaller shards"
            )
    for attempt in range(CONFLICT_RETRIES):
        try:
            _put(store, file, final, mode="create", **whole)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            code = _s3_code(error)
            if code in ("PreconditionFailed", "412"):
                return False
            if code not in ("ConditionalRequestConflict", "409"):
                raise
            # another writer is at the same name right now: once it is through, the condition decides
            time.sleep(0.2 * 2**attempt)
    return False


def _put(store: Store, file: Path, final: str, **how: Any) -> None:
    if not store.fs.async_impl:
        store.fs.put_file(str(file), final, **how)
        return
    seconds = PUT_SECONDS + file.stat().st_size / SLOWEST_UPLOAD
    try:
        sync(store.fs.loop, store.fs._put_file, str(file), final, timeout=seconds, **how)
    except FSTimeoutError as error:
        raise TimeoutError(f"a write timed out after {seconds:.0f} s") from error


def _s3_code(error: BaseException) -> str:
    """Error code that the S3 server gave; s3fs turns some of them into an OSError without one."""
    cause = error.__cause__ or error.__context__
    response = getattr(cause, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _conditional(store: Store) -> bool:
    """Whether this file system's put_file knows ``mode="create"`` (s3fs, gcsfs, memory); the probe tests that it
    holds.
    """
    protocol = store.fs.protocol
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    return bool(names & {"s3", "s3a", "gs", "gcs", "memory"})


def _link(file: Path, final: Path) -> bool:
    final.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    try:
        os.link(file, final)
    except FileExistsError:
        return False
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


@contextmanager
def _temporary(store: Store) -> Iterator[Path]:
    """A file beside its future place (a link cannot cross file systems), or in the system's own for a remote store."""
    if store.local:
        folder = Path(store.absolute(TEMPORARY))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(store.url, error) from error
        file = folder / uuid.uuid4().hex
        try:
            yield file
        except OSError as error:
            raise explain(store.url, error) from error
        finally:
            file.unlink(missing_ok=True)
        return
    with TemporaryDirectory(prefix="winnow-") as name:
        try:
            yield Path(name) / "shard"
        except OSError as error:
            if full := spool_full(error):
                raise full from error
            raise
