"""Ray's job server over HTTP: what a head with a dashboard answers on port 8265. Needs neither Ray nor data."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from tasks.logs import masked

ASK_SECONDS = 20.0
CONNECT_SECONDS = 5.0
AGENT_SECONDS = 30.0


class JobRefused(ValueError):
    """The job server does not answer, wants another token, or has a job that is in the way. Nothing was started."""


class JobFailed(RuntimeError):
    """The job ended without a summary: one line of what its log says last. ``exit_code``: of its command."""

    def __init__(self, why: str, exit_code: int = 1) -> None:
        super().__init__(why)
        self.exit_code = exit_code


class JobLost(RuntimeError):
    """Nobody can say how the job does: it may still be running, and submitting again finds it."""


class JobStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


class JobServer:
    """``with JobServer("http://head:8265") as server:``. A token is taken as Ray takes it; it is never logged."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise JobRefused(f"--dashboard {url}: give the URL of the cluster's dashboard, such as http://head:8265")
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise JobRefused(
                "--dashboard: the URL holds a user name or password; take it out, and set RAY_AUTH_TOKEN to the token"
            )
        self.url = url.rstrip("/")
        token = _token()
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(ASK_SECONDS, connect=CONNECT_SECONDS),
        )

    def __enter__(self) -> JobServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def jobs(self) -> list[dict[str, Any]]:
        """Every job that the cluster remembers, as Ray describes it."""
        return list(self._ask("GET", "/api/jobs/"))

    def submit(self, name: str, entrypoint: str, environment: dict[str, str], marks: dict[str, str]) -> bool:
        """Starts a job. False where somebody else submitted one under this name in the same moment: that one runs."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": name,
            "runtime_env": {"env_vars": environment},
            "metadata": marks,
        }
        deadline = time.monotonic() + AGENT_SECONDS
        answer = self._send("POST", "/api/jobs/", body)
        while "No available agent" in answer.text and time.monotonic() < deadline:
            time.sleep(1.0)  # a head that has just come up answers before it can start anything
            answer = self._send("POST", "/api/jobs/", body)
        if not answer.is_success and "already exists" in answer.text:
            return False
        if not answer.is_success:
            raise JobRefused(f"the job server at {self.url} refused the job ({answer.status_code}): {_told(answer)}")
        return True

    def status(self, name: str) -> tuple[JobStatus, str, int]:
        """How the job does, what Ray says of it, and the exit code of its command (1 where there is none)."""
        found = self._ask("GET", f"/api/jobs/{name}")
        return JobStatus(found["status"]), str(found.get("message") or ""), int(found.get("driver_exit_code") or 1)

    def log(self, name: str) -> str:
        return str(self._ask("GET", f"/api/jobs/{name}/logs").get("logs") or "")

    def stop(self, name: str) -> None:
        self._ask("POST", f"/api/jobs/{name}/stop")

    def _ask(self, how: str, path: str) -> Any:
        answer = self._send(how, path)
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise JobLost(f"the job server at {self.url} knows no {path}: was the head started anew?")
        if not answer.is_success:
            raise httpx.HTTPStatusError(_told(answer), request=answer.request, response=answer)
        try:
            return answer.json()
        except ValueError as error:
            raise JobRefused(f"what answers at {self.url} is no Ray job server") from error

    def _send(self, how: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        answer = self._client.request(how, path, json=body)
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise JobRefused(
                f"the job server at {self.url} refuses us ({answer.status_code}): set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH, to the cluster's token"
            )
        return answer


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 1500 else f"...{text[-1497:]}"


def _told(answer: httpx.Response) -> str:
    lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
    return masked(one_line(lines[-1] if lines else answer.reason_phrase))


def _token() -> str:
    """As Ray looks for it; the one in the home folder only where token mode is asked for."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not path and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        path = str(Path.home() / ".ray" / "auth_token")
    try:
        return Path(path).read_text().strip() if path else ""
    except OSError as error:
        raise JobRefused(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read ({error.strerror})") from error
