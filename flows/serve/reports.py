"""A read-only page server on loopback for the reports of runs, so that a link in Prefect's UI opens them.

A browser does not follow a link from an http page to a local file, and none at all to s3://. This server reads
``<output root>/.winnow/reports/<run id>.html`` through the store, as any reader would, and nothing else.

What it defends against: other pages in the same browser (they cannot read an answer; a Host that is not loopback
is refused, which stops DNS rebinding), a root that would make this machine call somewhere (folders and object
stores alone), and a path that leaves the reports folder (a run id has no other letters). What it does not: other users
of the same machine, who can read the reports as they can use Prefect's UI.
"""

from __future__ import annotations

import html
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

from tasks.artifacts import REPORT_PATH, REPORT_URL
from tasks.runs import REPORTS
from tasks.store import PREFLIGHT_SECONDS, Store, StoreError, within

HOST = "127.0.0.1"
SOCKET_SECONDS = 30.0
LISTED = 200
"""Reports that an index shows, the newest first."""

_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
_HEADERS = {
    # reports carry their style in themselves, load nothing and run no script: a page that tried would be cut off here
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-top-navigation-by-user-activation",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} · winnow</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color:#1d2430}}
a{{color:#1659b5}}code{{overflow-wrap:anywhere;background:#f1f3f6;padding:.1em .3em;border-radius:3px}}
li{{margin:.3rem 0}}@media(prefers-color-scheme:dark){{body{{background:#16191f;color:#e5e8ee}}a{{color:#7fb2ff}}
code{{background:#262b34}}}}</style><h1>{title}</h1>{body}</html>
"""


class PortTaken(RuntimeError):
    """Another process listens on the port: one line that names it and the remedy."""


@contextmanager
def report_server(port: int) -> Iterator[str]:
    """Serves reports on loopback inside the block and yields the base URL, which workers find as WINNOW_REPORT_URL.

    ``port`` 0 takes a free one. Raises PortTaken.
    """
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        raise PortTaken(f"port {port} for reports: {error.strerror or error}; choose another port") from error
    url = f"http://{HOST}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True, name="winnow-reports")
    thread.start()
    before = os.environ.get(REPORT_URL)
    os.environ[REPORT_URL] = url
    try:
        yield url
    finally:
        if before is None:
            os.environ.pop(REPORT_URL, None)
        else:
            os.environ[REPORT_URL] = before
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an answer that a store keeps waiting for does not hold the end up

    def __init__(self, *arguments: object) -> None:
        self.opened: dict[tuple[str, str], None] = {}
        super().__init__(*arguments)  # type: ignore[arg-type]


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, title: str, why: str) -> None:
        super().__init__(title)
        self.status, self.title, self.why = status, title, why


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = SOCKET_SECONDS
    server_version, sys_version = "winnow", ""

    def do_GET(self) -> None:
        try:
            status, page = HTTPStatus.OK, self._page()
        except _Refused as error:
            status, page = error.status, _PAGE.format(title=error.title, body=f"<p>{error.why}</p>").encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": "text/html; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        logging.getLogger("winnow").debug(format, *args)

    def _page(self) -> bytes:
        port = self.server.server_port
        if self.headers.get("Host") not in {f"{host}:{port}" for host in (HOST, "localhost")}:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "Not here", "This server answers on loopback alone.")
        asked = urlsplit(self.path)
        roots = parse_qs(asked.query).get("root", [])
        if asked.path == "/" and not roots:
            return self._front()
        if len(roots) != 1:
            raise _lost()
        store = _store(roots[0])
        if asked.path == "/":
            return _index(store)
        run = asked.path.removeprefix(REPORT_PATH)
        if not asked.path.startswith(REPORT_PATH) or not _RUN_ID.fullmatch(run):
            raise _lost()
        page = _report(store, run)
        self.server.opened[store.url, run] = None
        return page

    def _front(self) -> bytes:
        opened = reversed(self.server.opened)
        items = "".join(
            f'<li><a href="{_link(root, run)}">{run}</a> of <a href="/?root={quote(root, safe="")}">'
            f"<code>{html.escape(root)}</code></a></li>"
            for root, run in opened
        )
        body = f"<p>Opened since this server started, the last first:</p><ul>{items}</ul>" if items else ""
        how = "<p>A run's page in Prefect has a link to its report, under <em>Artifacts</em>.</p>"
        return _PAGE.format(title="Reports", body=how + body).encode()


def _lost() -> _Refused:
    why = "There is no page at this address. A run's page in Prefect links to its report, under <em>Artifacts</em>."
    return _Refused(HTTPStatus.NOT_FOUND, "No such page", why)


def _store(root: str) -> Store:
    """The output root, where it is a folder or in an object store: never a URL that would call somewhere else."""
    scheme, mark, _ = root.partition("://")
    known = scheme in _OBJECT_STORES if mark else root.startswith("/")
    if not known or "::" in root or "\0" in root or ".." in root.split("/"):
        why = f"<code>{html.escape(root)}</code> is no folder (an absolute path) and no object store."
        raise _Refused(HTTPStatus.BAD_REQUEST, "No output of a run", why)
    return Store(root)


def _report(store: Store, run: str) -> bytes:
    path = f"{REPORTS}/{run}.html"
    where = f"<code>{html.escape(store.url_of(path))}</code>"
    gone = f"There is no report at {where}. It was moved or deleted, or the run was on another machine."
    try:
        if store.local:
            folder = os.path.realpath(store.absolute(REPORTS))
            if os.path.realpath(store.absolute(path)) != f"{folder}/{run}.html":  # a link to another place
                raise _Refused(HTTPStatus.NOT_FOUND, "No such report", gone)
        if within(PREFLIGHT_SECONDS, store.url, lambda: store.entry(path)) is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "No such report", gone)
        return within(PREFLIGHT_SECONDS, store.url, lambda: store.read(path))
    except StoreError as error:
        raise _unreadable(error) from error


def _index(store: Store) -> bytes:
    try:
        entries = within(PREFLIGHT_SECONDS, store.url, lambda: store.entries(REPORTS))
    except StoreError as error:
        raise _unreadable(error) from error
    names = (entry.path.rpartition("/")[2].removesuffix(".html") for entry in entries)
    runs = sorted((name for name in names if _RUN_ID.fullmatch(name)), reverse=True)
    items = "".join(f'<li><a href="{_link(store.url, run)}">{run}</a></li>' for run in runs[:LISTED])
    more = f"<p>and {len(runs) - LISTED:,} older ones</p>" if len(runs) > LISTED else ""
    body = f"<ul>{items}</ul>{more}" if runs else "<p>There is no report: no run has ended here yet.</p>"
    return _PAGE.format(title="Reports", body=f"<p>of <code>{html.escape(store.url)}</code></p>{body}").encode()


def _unreadable(error: StoreError) -> _Refused:
    return _Refused(HTTPStatus.BAD_GATEWAY, "The store does not give the report", html.escape(str(error)))


def _link(root: str, run: str) -> str:
    return f"{REPORT_PATH}{run}?root={quote(root, safe='')}"
