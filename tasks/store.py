"""Reading from storage: any fsspec URL, listed with version tokens, opened with limits on every wait.

Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...), never from
parameters, so that they cannot end in a record or a report. Writing is :mod:`tasks.commit`'s alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory, gettempdir
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.credentials import line_of

T = TypeVar("T")

CHUNK_BYTES = 8 << 20
PREFLIGHT_SECONDS = 5.0  # a question; a refusal comes within ten seconds, and loading Python takes some of them
LISTING_SECONDS = 900.0  # a million objects take minutes, from a store that is known to answer
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}},
}
_IN_TROUBLE = ("slowdown", "reduce your request rate", "internalerror", "internal error", "unavailable", "bad gateway")
_S3_ROUNDS = 2
"""How often s3fs goes through the attempts of the client below it: a silent server costs rounds x attempts x timeout,
six minutes. By itself it would do it 5 times, a quarter of an hour for one question."""


class StoreError(RuntimeError):
    """Storage refused or did not answer. One line that names the URL and the remedy."""


class StoreAway(StoreError):
    """Storage did not answer, or is in trouble of its own: later it may."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object. ``path`` is relative to the store's root; ``token`` changes whenever the bytes change.

    ``modified``: seconds since the epoch by the store's clock, 0 where it does not say.
    """

    path: str
    size: int
    token: str
    modified: float = 0.0


class Store:
    """A folder or bucket prefix. Cheap to pickle: the connection is opened where it is first used."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None}

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def fs(self) -> Any:
        return self._open()[0]

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            # a copy, as botocore writes into what it is given
            options = deepcopy(_S3_OPTIONS) if self.url.startswith(("s3://", "s3a://")) else {}
            try:
                fs, root = fsspec.core.url_to_fs(self.url, **options)
            except (ValueError, ImportError) as error:
                raise StoreError(f"{self.url}: cannot open this kind of URL ({_line(error)})") from error
            if options:
                fs.retries = _S3_ROUNDS
            self._opened = (fs, root.rstrip("/"))
        return self._opened

    def absolute(self, path: str) -> str:
        """Path as the file system knows it."""
        root = self._open()[1]
        return f"{root}/{path}" if path else root

    def within(self, other: Store) -> bool:
        """Whether this is the same place as ``other`` or lies below it, however the two URLs are written."""
        places = [os.path.realpath(one.absolute("")) if one.local else one.absolute("") for one in (self, other)]
        return type(self.fs) is type(other.fs) and f"{places[0]}/".startswith(f"{places[1]}/")

    def lacks_bucket(self) -> bool:
        """Whether an object store says that the bucket is not there. Some would make it, misspelt, at the first write.

        False where it may not be asked: then the first write tells.
        """
        if self.local or "://" not in self.url:
            return False
        try:
            self.fs.info(self.absolute("").split("/")[0])
        except FileNotFoundError:
            return "s3" in self.fs.protocol or "gs" in self.fs.protocol
        except Exception:
            return False
        return False

    def answers(self) -> None:
        """Asks for the root itself, which is one small question however much lies below. Raises StoreError."""
        try:
            self.fs.info(self.absolute(""))
        except FileNotFoundError:
            return  # the listing says what is missing
        except Exception as error:
            raise explain(self.url, error) from error

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def entries(self, prefix: str = "") -> list[Entry]:
        """Every object below ``prefix``, sorted by path. An absent prefix is an empty list.

        Raises StoreError where a part of it may not be listed: what is not seen would count as not there.
        """
        root = self._open()[1]
        try:
            if self.local:
                return sorted(_walked(self.absolute(prefix), len(root) + 1), key=lambda entry: entry.path)
            found = self.fs.find(self.absolute(prefix), detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise explain(self.url_of(prefix), error) from error
        entries = []
        for path, info in found.items():
            if info.get("type") == "directory":
                continue
            token = self._token(path, info)
            entries.append(Entry(str(path)[len(root) + 1 :], int(info.get("size") or 0), token, _modified(info)))
        return sorted(entries, key=lambda entry: entry.path)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below ``prefix``."""
        try:
            found = self.fs.ls(self.absolute(prefix), detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise explain(self.url_of(prefix), error) from error
        return sorted(str(i["name"]).rstrip("/").rsplit("/", 1)[-1] for i in found if i["type"] == "directory")

    def entry(self, path: str) -> Entry | None:
        """The object at ``path``, or None."""
        try:
            info = self.fs.info(self.absolute(path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise explain(self.url_of(path), error) from error
        if info.get("type") == "directory":
            return None
        return Entry(path, int(info.get("size") or 0), self._token(self.absolute(path), info))

    def read(self, path: str) -> bytes:
        try:
            return bytes(self.fs.cat_file(self.absolute(path)))
        except Exception as error:
            raise explain(self.url_of(path), error) from error

    @contextmanager
    def fetched(self, path: str) -> Iterator[tuple[Path, str]]:
        """The object as a local file and the SHA-256 of its bytes; a remote one is spooled and removed afterwards."""
        if self.local:
            local = Path(self.absolute(path))
            try:
                with local.open("rb") as stream:
                    digest = sha256_of(stream)
            except OSError as error:
                raise explain(self.url_of(path), error) from error
            yield local, digest
            return
        with TemporaryDirectory(prefix="winnow-") as folder:
            local = Path(folder) / "shard"
            try:
                self.fs.get_file(self.absolute(path), str(local))
            except Exception as error:
                raise spool_full(error) or explain(self.url_of(path), error) from error
            with local.open("rb") as stream:
                digest = sha256_of(stream)
            yield local, digest

    def _token(self, path: str, info: dict[str, Any]) -> str:
        """Version token: ETag, version or generation; locally size, mtime and inode."""
        if self.local:
            return _local_token(os.stat(path))
        for key in ("ETag", "etag", "generation", "versionId", "md5Hash", "mtime", "LastModified", "created"):
            if info.get(key):
                return f"{info.get('size')}-{str(info[key]).strip(chr(34))}"
        return str(info.get("size"))


def _local_token(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"


def _walked(top: str, cut: int) -> Iterator[Entry]:
    """Every file below a local folder, one stat each. fsspec's walk leaves out, silently, what it may not read, and
    would give a pipe for a file.

    ``cut``: characters of an absolute path that are the store's root.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            listing = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):  # gone since it was found, or never there
            continue
        with listing:
            for one in listing:
                if one.is_dir(follow_symlinks=False):
                    waiting.append(one.path)
                    continue
                try:
                    stat = one.stat()
                except FileNotFoundError:  # removed meanwhile, as records are that another run compacts; or a dead link
                    continue
                if S_ISREG(stat.st_mode):
                    yield Entry(one.path[cut:], stat.st_size, _local_token(stat), stat.st_mtime)


def _modified(info: dict[str, Any]) -> float:
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        when = info.get(key)
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, int | float):
            return float(when)
    return 0.0


def sha256_of(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def within(seconds: float, what: str, work: Callable[[], T]) -> T:
    """The result of ``work``, or a StoreError once it has taken ``seconds``: no preflight question may hang."""
    box: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            box.append(work())
        except BaseException as error:  # handed to the caller's thread below
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True, name=f"winnow-within-{what}")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StoreError(f"{what}: no answer within {seconds:.0f} s; check the address and the network")
    if errors:
        raise errors[0]
    return box[0]


def spool_full(error: BaseException) -> StoreError | None:
    """The line for a temporary folder without room, where what is bound for a remote store waits; None for others."""
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        return None
    return StoreError(
        f"{gettempdir()}: no space left for temporary files; free some and run the same command again to go on, or let "
        "TMPDIR name a larger disk"
    )


def explain(url: str, error: BaseException) -> StoreError:
    """The error as one line that names the URL and the remedy."""
    if isinstance(error, StoreError):
        return error
    text = _line(error)
    low = text.lower()
    if isinstance(error, FileNotFoundError) or "nosuchbucket" in low:
        remedy = "it does not exist; check the spelling, and create the bucket or folder first"
    elif isinstance(error, PermissionError) or any(
        word in low for word in ("forbidden", "accessdenied", "access denied", "signature", "invalidaccesskey")
    ):
        remedy = f"access refused ({text}); check the credentials in the environment and the rights on it"
    elif "credential" in low:
        remedy = "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
    elif "connect" in low or "endpoint" in low or "timeout" in low or "timed out" in low:
        return StoreAway(f"{url}: the store does not answer ({text}); check AWS_ENDPOINT_URL and the network")
    elif any(word in low for word in _IN_TROUBLE):
        return StoreAway(f"{url}: the store is in trouble ({text}); the same command goes on once it is not")
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        remedy = "no space left; free some and run the same command again to go on"
    else:
        remedy = text
    return StoreError(f"{url}: {remedy}")


def _line(error: BaseException) -> str:
    return line_of(error, 300)
