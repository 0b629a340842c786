"""What cannot work is refused by the real command: exit code 2, one line on standard error, within ten seconds."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bad_input import packed, put, said
from tests.conftest import READER, free_port
from tests.flows.test_cli import WINNOW
from tests.full_disk import full_disk

SECONDS, IDLE_SECONDS = 10.0, 2.0
HERE, S3 = "{folder}/web", "{s3}/web"
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Refusal:
    """A command line that cannot work. ``prepare``: what is done to the folder before."""

    source: str
    output: str
    line: str
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None


def shard(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "web" / name).write_bytes(data)


WRONG_KEY = {"AWS_ACCESS_KEY_ID": "not-the-right-one"}
WRONG_SECRET = {"AWS_SECRET_ACCESS_KEY": "not-the-right-one"}
READ_ONLY = {"AWS_ACCESS_KEY_ID": READER}
NOBODY = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
CREDENTIALS = "check the credentials in the environment and the rights"
NETWORK = "check AWS_ENDPOINT_URL and the network"

OUT, NAME = "{folder}/out", "which no shard's name may"
LOCAL_CASES = {
    "missing folder": Refusal("/no/such/place", OUT, "/no/such/place: no .parquet or .jsonl file found"),
    "no shard in it": Refusal("{folder}", OUT, "", prepare=lambda folder: (folder / "web/a.parquet").unlink()),
    "damaged first shard": Refusal(HERE, OUT, "not a readable Parquet file", prepare=shard("0.parquet", b"PAR1")),
    "no text column": Refusal(HERE, OUT, "no column 'text'", prepare=shard("0.parquet", packed({"content": ["x"]}))),
    "line break in a name": Refusal(HERE, OUT, NAME, prepare=shard("a\nb.parquet", b"")),
    "bytes in a name that are no UTF-8": Refusal(HERE, OUT, NAME, prepare=shard("\udcff.parquet", b"")),
    "no permission to write": Refusal(HERE, "/sys/winnow", "/sys/winnow"),
    "output inside the input": Refusal(HERE, "{folder}/web/out", "lies inside the input"),
}

S3_CASES = {
    "missing bucket of the input": Refusal("s3://no-such-bucket/web", "{folder}/out", "s3://no-such-bucket/web: "),
    "missing bucket of the output": Refusal(HERE, "s3://no-such-bucket/out", "create the bucket first"),
    "nothing under the prefix": Refusal("{s3}/nowhere", "{folder}/out", "no .parquet or .jsonl file found there"),
    "wrong key for the input": Refusal(S3, "{folder}/out", CREDENTIALS, WRONG_KEY),
    "wrong secret for the input": Refusal(S3, "{folder}/out", CREDENTIALS, WRONG_SECRET),
    "wrong key for the output": Refusal(HERE, "{s3}/out", CREDENTIALS, WRONG_KEY),
    "wrong secret for the output": Refusal(HERE, "{s3}/out", CREDENTIALS, WRONG_SECRET),
    "no credentials": Refusal(S3, "{folder}/out", "AWS_ACCESS_KEY_ID", NOBODY),
    "no permission to write to the bucket": Refusal(S3, "{s3}/out", CREDENTIALS, READ_ONLY),
    "damaged first shard": Refusal("{s3}/damaged", "{s3}/out", "not a readable Parquet file"),
    "output inside the input": Refusal(S3, "{s3}/web/out", "lies inside the input"),
}
FAST = ("damaged first shard", "wrong secret for the input", "no permission to write to the bucket")

ENDPOINTS = dict.fromkeys(("closed", "no S3", "silent", "no such host"), "and the network")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.parquet").write_bytes(packed({"text": said("a")}))
    return tmp_path


@functools.cache
def slowness() -> float:
    """Seconds that this machine, busy with other things, takes longer to refuse what needs no question than an idle
    one."""
    began = time.monotonic()
    subprocess.run([WINNOW, "curate-text", "--input", "/no", "--output", "/no"], capture_output=True, check=False)
    return max(0.0, time.monotonic() - began - IDLE_SECONDS)


def assert_refused(folder: Path, refusal: Refusal, s3: str = "") -> None:
    """Refused, and the line is there in time: once of two tries, as the machine may be busy."""
    refusal.prepare(folder)
    words = [one.format(folder=folder, s3=s3) for one in (refusal.source, refusal.output)]
    before = _files(folder)
    for last in (False, True):
        began = time.monotonic()
        process = subprocess.Popen(
            [WINNOW, "curate-text", "--input", words[0], "--output", words[1], "--no-rephrase", "--executor", "local"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **refusal.environment},
        )
        assert process.stderr is not None
        line = process.stderr.readline()
        seconds = time.monotonic() - began
        out, more = process.communicate(timeout=60)
        assert process.returncode == 2 and out == "" and more == "", line + more
        assert line.startswith("winnow: ") and refusal.line in line and len(line) < 800
        assert _files(folder) == before, "a refused run leaves nothing but an empty folder"
        if seconds < SECONDS + slowness():
            return
        assert not last, seconds


@pytest.mark.parametrize("name", [one if one in FAST else pytest.param(one, marks=SLOW) for one in LOCAL_CASES])
def test_a_bad_folder_is_refused_in_time(folder: Path, name: str) -> None:
    assert_refused(folder, LOCAL_CASES[name])


@pytest.mark.parametrize("name", [one if one in FAST[1:] else pytest.param(one, marks=SLOW) for one in S3_CASES])
def test_a_bad_bucket_is_refused_in_time(folder: Path, s3: str, name: str) -> None:
    from tasks.store import Store

    root = f"{s3}/{uuid.uuid4().hex[:12]}"
    put(Store(root), "web/a.parquet", packed({"text": said("a")}))
    put(Store(root), "damaged/a.parquet", b"PAR1 no PAR1")
    assert_refused(folder, S3_CASES[name], root)


@pytest.mark.parametrize("kind", ["silent", *(pytest.param(one, marks=SLOW) for one in ENDPOINTS if one != "silent")])
@pytest.mark.parametrize("place", ["input", pytest.param("output", marks=SLOW)])
def test_a_wrong_endpoint_is_refused_in_time(folder: Path, kind: str, place: str) -> None:
    with endpoint(kind) as url:
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        where = ("s3://lake/web", "{folder}/out") if place == "input" else (HERE, "s3://lake/out")
        assert_refused(folder, Refusal(*where, ENDPOINTS[kind], {**keys, "AWS_ENDPOINT_URL": url}))


def test_a_full_disk_is_refused_in_time(folder: Path, tmp_path: Path) -> None:
    with full_disk(tmp_path / "full", 1 << 20, free=0) as full:
        assert_refused(folder, Refusal(HERE, f"{full}/out", "no space left; free some"))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if not file.is_dir())


@contextmanager
def endpoint(kind: str) -> Iterator[str]:
    if kind in ("closed", "no such host"):
        yield f"http://{'127.0.0.1' if kind == 'closed' else 'no-such-host.invalid'}:{free_port()}"
        return
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        if kind == "no S3":
            threading.Thread(target=_say_html, args=(server,), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        if kind == "no S3":
            server.shutdown(socket.SHUT_RDWR)


def _say_html(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>")
