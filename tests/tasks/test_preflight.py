"""What cannot work is refused in one line that names the URL and the remedy, in seconds; on folders and a real S3."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import preflight
from tasks.preflight import Refused
from tasks.selection import Selection
from tasks.source import SourceColumns, open_source
from tasks.store import Store, StoreError, within
from tests.conftest import free_port
from tests.toys import documents

SECONDS = 10.0
"""The five seconds that a preflight question may take, and some for a busy machine."""


def refusal(work: Callable[[], Any]) -> str:
    """The one line of the refusal, which must come in time."""
    began = time.monotonic()
    with pytest.raises(Refused) as caught:
        work()
    assert time.monotonic() - began < SECONDS
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line


@pytest.fixture(autouse=True)
def fresh_connections() -> Iterator[None]:
    """fsspec keeps connections by their options, and the tests here change what stands in the environment."""
    fsspec.config.conf.clear()
    _forget()
    yield
    _forget()


def _forget() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def source_of(url: str, **columns: str) -> Any:
    return preflight.source(url, columns, None)


# -- input ---------------------------------------------------------------------------------------------------------


def test_a_good_input_passes(web: Path) -> None:
    assert [shard.name for shard in source_of(str(web)).shards] == [f"part-{n}.parquet" for n in range(3)]
    assert [shard.head for shard in preflight.source(str(web), {}, 12).shards] == [None, 2]


def test_a_limit_counts_the_chosen_shards_and_names_its_own_folders(web: Path) -> None:
    said: list[str] = []
    chosen = Selection(("part-[12].*",))
    cut = preflight.source(str(web), {}, 12, chosen, said.append)
    assert [(shard.name, shard.head) for shard in cut.shards] == [("part-1.parquet", None), ("part-2.parquet", 2)]
    assert said == ["backfill: 2 of 3 input shards chosen"]
    # the cut of another choice is another sample: its rows may not lie in one folder with these
    marks = {one.mark for one in (cut, source_of(str(web)), preflight.source(str(web), {}, 12))}
    marks.add(preflight.source(str(web), {}, 12, Selection(("part-2*",))).mark)
    assert len(marks) == 4
    # without a limit a chosen shard is what it is in a run over all
    assert preflight.source(str(web), {}, None, chosen).mark == source_of(str(web)).mark


def test_the_columns_of_the_chosen_shards_are_checked_and_not_those_of_others(web: Path) -> None:
    (web / "a-broken.parquet").write_bytes(b"PAR1 no Parquet PAR1")
    assert len(preflight.source(str(web), {}, None, Selection(("part-*",))).shards) == 3
    assert "a-broken.parquet" in refusal(lambda: source_of(str(web)))


def test_a_glob_of_the_input_that_is_none(tmp_path: Path) -> None:
    assert "'[z-a].parquet': no glob" in refusal(lambda: source_of(f"{tmp_path}/[z-a].parquet"))


def test_a_missing_folder(root: str) -> None:
    line = refusal(lambda: source_of(f"{root}/nowhere"))
    assert line == f"{root}/nowhere: no .parquet or .jsonl file found there; check the URL or the glob"


def test_a_missing_bucket(s3: str, web: Path) -> None:
    line = refusal(lambda: source_of("s3://no-such-bucket/web"))
    assert line.startswith("s3://no-such-bucket/web: ") and "check" in line
    given = source_of(str(web))
    line = refusal(lambda: preflight.output("s3://no-such-bucket/out", given, str(web), single_writer=False))
    assert "s3://no-such-bucket/out" in line and "create the bucket" in line


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3: str, web: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "not-the-right-one")
    given = source_of(str(web))
    for work in (
        lambda: source_of(f"{s3}/web"),
        lambda: preflight.output(f"{s3}/out", given, str(web), single_writer=False),
    ):
        line = refusal(work)
        assert f"{s3}/" in line and "access refused" in line and "check the credentials" in line
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in line


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    line = refusal(lambda: source_of(f"{s3}/web"))
    assert f"{s3}/web" in line and ("AWS_ACCESS_KEY_ID" in line or "check the credentials" in line)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Some credentials, for servers that never get to look at them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return monkeypatch


def test_a_closed_port(keys: pytest.MonkeyPatch, web: Path) -> None:
    keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    line = refusal(lambda: source_of("s3://lake/web"))
    assert (
        "s3://lake/web" in line and "and the network" in line
    )  # s3fs asks again for some seconds, on a busy machine for all of them


def test_an_endpoint_that_never_answers(keys: pytest.MonkeyPatch, web: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        line = refusal(lambda: source_of("s3://lake/web"))
    assert line == "s3://lake/web: no answer within 5 s; check the address and the network"


def test_an_endpoint_that_is_no_s3(keys: pytest.MonkeyPatch) -> None:
    keys.setattr(preflight, "PREFLIGHT_SECONDS", 2.0)  # it is asked again and again until then
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(16)

        def serve() -> None:
            while True:
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")

        threading.Thread(target=serve, daemon=True).start()
        keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{other.getsockname()[1]}")
        line = refusal(lambda: source_of("s3://lake/web"))
        other.shutdown(socket.SHUT_RDWR)
    assert "s3://lake/web" in line


def test_an_unknown_kind_of_url(web: Path) -> None:
    assert "nothere://x: cannot open" in refusal(lambda: source_of("nothere://x"))
    given = source_of(str(web))
    assert "nothere://x: cannot open" in refusal(lambda: preflight.output("nothere://x", given, str(web), False))


def test_a_missing_column_names_the_remedy(root: str) -> None:
    store = Store(root)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"content": ["x"]}), buffer)
    store.fs.makedirs(store.absolute(""), exist_ok=True)
    store.fs.pipe_file(store.absolute("a.parquet"), buffer.getvalue().to_pybytes())
    line = refusal(lambda: source_of(root))
    assert line.startswith(f"{root}/a.parquet: no column 'text'") and "--columns text=NAME" in line
    assert source_of(root, text="content").shards


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl"])
def test_a_first_shard_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00 this is nothing" * 10)
    assert f"{tmp_path}/{name}: " in refusal(lambda: source_of(str(tmp_path)))


def test_a_later_shard_that_cannot_be_counted(web: Path) -> None:
    (web / "part-1.parquet").write_bytes(b"nothing")
    line = refusal(lambda: preflight.source(str(web), {}, 25))
    assert line.startswith(f"{web}/part-1.parquet: cannot be read")


def test_empty_shards_in_front_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_text('{"content": "x"}\n')
    assert "b.jsonl: no column 'text'" in refusal(lambda: source_of(str(tmp_path)))


# -- output --------------------------------------------------------------------------------------------------------


def probed(root: str, web: Path) -> Store:
    return preflight.output(root, source_of(str(web)), str(web), single_writer=False)


def test_a_good_output_passes_and_stays_empty(root: str, web: Path) -> None:
    assert probed(root, web).entries() == []


def test_no_permission_to_write_to_a_folder(tmp_path: Path, web: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # root may write anywhere but where the kernel itself refuses
    place = Path("/sys/winnow") if os.geteuid() == 0 else closed / "out"
    line = refusal(lambda: probed(str(place), web))
    assert line.startswith(f"{place}") and ("rights" in line or "Read-only" in line)


def test_an_output_below_a_file(tmp_path: Path, web: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(lambda: probed(str(tmp_path / "file" / "out"), web))
    assert line.startswith(f"{tmp_path}/file/out") and "directory" in line


def test_no_permission_to_write_to_a_bucket(s3: str, web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    real = s3fs.S3FileSystem._call_s3

    async def readonly(self: Any, method: str, *arguments: Any, **kwargs: Any) -> Any:
        if method.startswith(("put", "delete", "create")):
            raise PermissionError("Access Denied.")  # as s3fs says AccessDenied
        return await real(self, method, *arguments, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", readonly)
    line = refusal(lambda: probed(f"{s3}/readonly-{random.randrange(10**9)}", web))
    assert f"{s3}/readonly-" in line and "check the credentials in the environment and the rights" in line


@pytest.mark.parametrize("inside", ["", "/out", "/x/../out", "/../web/out"])
def test_an_output_inside_the_input(web: Path, inside: str) -> None:
    given = source_of(str(web))
    line = refusal(lambda: preflight.output(f"{web}{inside}", given, str(web), single_writer=False))
    assert line.startswith(f"{web}{inside}: lies inside the input") and "choose another folder" in line
    assert sorted(one.name for one in web.iterdir()) == [f"part-{n}.parquet" for n in range(3)]


def test_an_output_inside_the_input_by_another_name(web: Path, tmp_path: Path) -> None:
    given = source_of(f"file://{web}")
    refusal(lambda: preflight.output(f"{web}/out", given, f"file://{web}", single_writer=False))
    (tmp_path / "link").symlink_to(web)
    given = source_of(str(web))
    refusal(lambda: preflight.output(str(tmp_path / "link" / "out"), given, str(web), single_writer=False))
    given = source_of(f"{web}/**/*.parquet")
    refusal(lambda: preflight.output(f"{web}/out", given, f"{web}/**/*.parquet", single_writer=False))


def test_an_output_inside_the_input_on_s3(s3: str) -> None:
    root = f"{s3}/inside-{random.randrange(10**9)}"
    store = Store(root)
    store.fs.pipe_file(store.absolute("web/a.jsonl"), b'{"text": "x"}\n')
    given = source_of(f"{root}/web/")
    refusal(lambda: preflight.output(f"{root}/web/out", given, f"{root}/web/", single_writer=False))
    preflight.output(f"{root}/web-out", given, f"{root}/web/", single_writer=False)
    preflight.output(root, given, f"{root}/web/", single_writer=False)


@pytest.mark.parametrize(("given_url", "out"), [("", "-out"), ("/*.parquet", "/out"), ("/part-0.parquet", "/out")])
def test_an_output_that_no_listing_finds_is_fine(web: Path, given_url: str, out: str) -> None:
    url = f"{web}{given_url}"
    preflight.output(f"{web}{out}", source_of(url), url, single_writer=False)
    assert next(shard.name for shard in open_source(url, SourceColumns()).shards) == "part-0.parquet"


# -- models and waits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["/no/such/model", "package:no-such-package", "hf:org/model"])
def test_a_model_that_is_not_there(reference: str) -> None:
    assert reference.rsplit(":", maxsplit=1)[-1] in refusal(lambda: preflight.models([reference]))


def test_a_question_without_an_answer_ends() -> None:
    release = threading.Event()
    began = time.monotonic()
    with pytest.raises(StoreError, match="s3://somewhere: no answer within 0 s; check the address"):
        within(0.2, "s3://somewhere", lambda: release.wait(30))
    release.set()
    assert time.monotonic() - began < 5
    assert within(5, "x", lambda: 7) == 7
    with pytest.raises(KeyError):
        within(5, "x", lambda: {}["missing"])


def test_documents_are_what_the_other_tests_think(web: Path) -> None:
    assert pq.read_table(web / "part-0.parquet").equals(documents(10))
