"""What the client makes of answers that a head gives before it is ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.job_server import JobRefused, JobServer


class WakingHead(HTTPServer):
    """Stands in for a head whose agents come up late: refuses the first ``refusals`` jobs as Ray 2.60 does."""

    def __init__(self, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.refusals, self.asked = refusals, 0


class _Answer(BaseHTTPRequestHandler):
    server: WakingHead

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        ready = self.server.asked > self.server.refusals
        body = b'{"submission_id": "one"}' if ready else b"No available agent to submit job, please try again later."
        self.send_response(200 if ready else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: standard error is the test's."""


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[WakingHead]:
    server = WakingHead(request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("head", [2], indirect=True)
def test_a_head_that_has_just_come_up_is_asked_again(head: WakingHead) -> None:
    with JobServer(f"http://127.0.0.1:{head.server_port}") as server:
        server.submit("one", "true", {}, {})
    assert head.asked == 3


@pytest.mark.parametrize("head", [10**6], indirect=True)
def test_one_that_never_comes_up_is_told_in_one_line(head: WakingHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.job_server.AGENT_SECONDS", 1.5)
    with (
        JobServer(f"http://127.0.0.1:{head.server_port}") as server,
        pytest.raises(JobRefused, match=r"refused the job \(500\): No available agent"),
    ):
        server.submit("one", "true", {}, {})
    assert 1 < head.asked < 10
