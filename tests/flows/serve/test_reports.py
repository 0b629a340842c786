"""The page server for reports: what it gives out, and everything that it must not."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from flows.serve import reports
from flows.serve.reports import PortTaken, report_server
from tasks.artifacts import REPORT_URL, report_link
from tasks.commit import create
from tasks.runs import new_run_id, save_run
from tasks.store import Store, StoreError
from tasks.summary import RunSummary


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with report_server(0) as url:
        yield url


def saved(root: str) -> RunSummary:
    run = RunSummary(run_id=new_run_id(), flow="curate_text", started="2026", input="/in", output=Store(root).url)
    return save_run(Store(root), run)


def get(server: str, path: str, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """As it stands: urllib would tidy the path up before it is sent."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or urlsplit(server).netloc)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


def test_the_link_of_a_run_opens_its_report(server: str, root: str) -> None:
    run = saved(root)
    link = report_link(run)
    assert link.startswith(f"{server}/")
    status, headers, page = get(server, link.removeprefix(server))
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert page == Store(root).read(f".winnow/reports/{run.run_id}.html").decode()
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and "script" not in headers["content-security-policy"]
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert int(headers["content-length"]) == len(page.encode())
    assert get(server, link.removeprefix(server), method="HEAD")[::2] == (200, "")


def test_the_index_lists_runs_the_newest_first_and_the_front_page_what_was_opened(server: str, root: str) -> None:
    first, second = saved(root), saved(root)
    newest, oldest = sorted((first.run_id, second.run_id), reverse=True)
    page = get(server, f"/?root={quote(Store(root).url, safe='')}")[2]
    assert page.index(newest) < page.index(oldest)
    assert first.run_id not in get(server, "/")[2]
    link = page.partition('href="')[2].partition('"')[0]
    assert get(server, link)[0] == 200
    assert newest in get(server, "/")[2]


def test_nothing_there_is_said_in_plain_words(server: str, root: str) -> None:
    place = quote(Store(root).url, safe="")
    status, _, page = get(server, f"/reports/20260314T000000-abcdef?root={place}")
    assert status == 404 and "There is no report at" in page and "moved or deleted" in page
    assert "no run has ended here yet" in get(server, f"/?root={place}")[2]
    status, headers, page = get(server, "/elsewhere")
    assert status == 404 and "There is no page at this address" in page and headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "run",
    [
        "../../secret",
        "..%2f..%2fsecret",
        "20260314T000000-abcdef/../../../secret",
        "20260314T000000-abcdef.html",
        "20260314T000000-ABCDEF",
        "20260314T000000-abcdef%00",
        "",
        "*",
        "other",
        "deeper/page",
    ],
)
def test_a_path_never_leaves_the_reports(server: str, tmp_path: Path, run: str) -> None:
    saved(str(tmp_path / "out"))
    for name in ("secret", "secret.html"):
        (tmp_path / "out" / name).write_text("TOP SECRET")
    (tmp_path / "out" / ".winnow" / "reports" / "deeper").mkdir()
    for name in ("other", "deeper/page"):  # beside the reports, and none of a run
        (tmp_path / "out" / ".winnow" / "reports" / f"{name}.html").write_text("TOP SECRET")
    status, _, page = get(server, f"/reports/{run}?root={quote(str(tmp_path / 'out'), safe='')}")
    assert status == 404 and "SECRET" not in page


def test_a_link_in_the_folder_is_not_followed_out_of_it(server: str, tmp_path: Path) -> None:
    run = saved(str(tmp_path / "out"))
    (tmp_path / "secret").write_text("TOP SECRET")
    report = tmp_path / "out" / ".winnow" / "reports" / f"{run.run_id}.html"
    report.unlink()
    report.symlink_to(tmp_path / "secret")
    status, _, page = get(server, report_link(run).removeprefix(server))
    assert status == 404 and "SECRET" not in page


@pytest.mark.parametrize(
    "root",
    [
        "http://127.0.0.1:1/x",
        "ftp://x/y",
        "file:///etc",
        "simplecache::s3://lake/x",
        "relative",
        "/a/../b",
        "github://a:b@/",
    ],
)
def test_a_root_that_would_call_somewhere_else_is_refused(
    server: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "Store", None)  # not even opened
    status, _, page = get(server, f"/reports/20260314T000000-abcdef?root={quote(root, safe='')}")
    assert status == 400 and "no object store" in page


def test_what_a_page_shows_of_a_root_is_text(server: str, tmp_path: Path) -> None:
    place = tmp_path / "<script>alert(1)<"
    create(Store(str(place)), ".winnow/reports/20260314T000000-abcdef.html", b"<p>report")
    asked = quote(str(place), safe="")
    assert get(server, f"/reports/20260314T000000-abcdef?root={asked}")[2] == "<p>report"
    for path in (f"/reports/20260314T000000-000000?root={asked}", f"/?root={asked}", "/", "/x?root=<script>"):
        assert "<script>" not in get(server, path)[2]


def test_another_host_is_refused(server: str, tmp_path: Path) -> None:
    link = report_link(saved(str(tmp_path))).removeprefix(server)
    port = urlsplit(server).port
    assert get(server, link, host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1"):
        assert get(server, link, host=host)[0] == 421


def test_only_reading_is_answered(server: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(server, "/", method=method)[0] == 501


def test_a_store_that_does_not_answer_is_said_and_not_waited_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(store: Store, path: str) -> None:
        raise StoreError(f"{store.url}: the store does not answer <here>")

    monkeypatch.setattr(Store, "entry", gone)
    status, _, page = get(server, "/reports/20260314T000000-abcdef?root=s3%3A%2F%2Flake%2Fx")
    assert status == 502 and "does not answer &lt;here&gt;" in page


def test_it_listens_on_loopback_and_is_gone_afterwards() -> None:
    before = os.environ.get(REPORT_URL)
    with report_server(0) as url:
        assert os.environ[REPORT_URL] == url and urlsplit(url).hostname == "127.0.0.1"
        port = urlsplit(url).port
        assert port
        with pytest.raises(PortTaken, match=f"port {port} for reports: .*choose another port"), report_server(port):
            pass
        assert os.environ[REPORT_URL] == url
    assert os.environ.get(REPORT_URL) == before
    with socket.socket() as one, pytest.raises(ConnectionRefusedError):
        one.connect(("127.0.0.1", port))
