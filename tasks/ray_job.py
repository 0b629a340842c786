"""A run as a job of a Ray cluster: submitted to its job server, followed by its log, stopped so that it drains.

Whoever submits needs neither Ray nor the data's credentials. One output root has one job at a time: its id is made of
the output, so whoever submits the same run again, after a crash or by a second schedule, finds the job that runs and
follows that one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import ValidationError

from tasks.job_server import JobFailed, JobLost, JobRefused, JobServer, JobStatus, one_line
from tasks.logs import FORMAT, JSON, masked
from tasks.summary import RunSummary

POLL_SECONDS = 2.0
TAIL_LINES = 12
ENTRY = "exec winnow curate-text --json --config /dev/stdin <<'WINNOW'\n{parameters}\nWINNOW"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of every wait, in seconds. ``pending``: until the job begins; ``drain``: until it ended after it was asked to;
    ``silence``: without an answer of the job server.
    """

    pending: float = 900.0
    drain: float = 180.0
    silence: float = 120.0


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is to be a job. ``parameters`` go through the command line's check; ``forward`` names variables of
    this environment that the job is to have. ``owner``: who submits; only to the same one an ended job is still its.
    """

    output: str
    parameters: Mapping[str, Any]
    forward: tuple[str, ...] = ()
    owner: str = ""
    limits: Limits = field(default_factory=Limits)

    @property
    def key(self) -> str:
        return f"winnow-{_digest(self.output.rstrip('/'))}"

    @property
    def packed(self) -> str:
        return json.dumps(dict(self.parameters), ensure_ascii=True)

    @property
    def digest(self) -> str:
        return _digest(self.packed)

    def environment(self) -> dict[str, str]:
        """Raises JobRefused where a variable that is to be forwarded is not set here."""
        missing = [name for name in self.forward if name not in os.environ]
        if missing:
            raise JobRefused(f"--forward {missing[0]}: it is not set in this environment")
        return {
            **{name: os.environ[name] for name in self.forward},
            FORMAT: JSON,
            # Ray gives a job that is stopped 3 s before it kills it, and a run needs longer to drain
            "RAY_JOB_STOP_WAIT_TIME_S": str(int(self.limits.drain)),
        }


def find_or_submit(server: JobServer, job: Job) -> tuple[str, bool]:
    """Name of the job that does this run, and whether it was there before. Raises JobRefused.

    A job that runs at this output is followed where it does the same, else it is in the way. One that ended is followed
    only by its own submitter, who lost sight of it; for everybody else the run begins anew and finds what is finished.
    """
    environment = job.environment()
    before = {_number(one.get("submission_id"), job.key): one for one in known_jobs(server)}
    number = max(before, default=0)
    if number:
        name, last = f"{job.key}-{number}", before[number]
        marks = last.get("metadata") or {}
        same = marks.get("winnow_parameters") == job.digest
        if not JobStatus(last["status"]).ended:
            if same:
                return name, True
            raise JobRefused(_in_the_way(server, name, job))
        if same and job.owner and marks.get("winnow_owner") == job.owner:
            return name, True
    name = f"{job.key}-{number + 1}"
    marks = {"winnow_parameters": job.digest, "winnow_owner": job.owner}
    try:
        began = server.submit(name, ENTRY.format(parameters=job.packed), environment, marks)
    except httpx.HTTPError as error:
        raise JobRefused(f"the job server at {server.url} did not take the job ({_why(error)}); try again") from error
    if not began:  # whose job it is has to be seen: it may do something else at this output
        held = next((one for one in known_jobs(server) if one.get("submission_id") == name), {})
        if (held.get("metadata") or {}).get("winnow_parameters") != job.digest:
            raise JobRefused(_in_the_way(server, name, job))
    return name, not began


def _in_the_way(server: JobServer, name: str, job: Job) -> str:
    return (
        f"job {name} is at work at {job.output} with other parameters; wait for it, or stop it with "
        f"`ray job stop --address {server.url} {name}`"
    )


def known_jobs(server: JobServer) -> list[dict[str, Any]]:
    """Every job that the cluster remembers. Raises JobRefused, in seconds, where it does not answer or refuses us."""
    try:
        return server.jobs()
    except httpx.HTTPError as error:
        raise JobRefused(
            f"the job server at {server.url} does not answer ({_why(error)}); is it the head's dashboard?"
        ) from error


def follow(
    server: JobServer,
    name: str,
    limits: Limits,
    asked: Callable[[], bool] = lambda: False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    poll_seconds: float = POLL_SECONDS,
) -> RunSummary:
    """Waits for the job and returns the summary of its run, however that ended. ``asked``: whether to stop the job now.

    ``on_event`` gets each event of the job's log once, in order. Raises JobFailed where the job left no summary,
    JobLost where it cannot be said any more how the job does.
    """
    began = heard = time.monotonic()
    stopped: float | None = None
    told = 0
    next_log, log = began, ""
    status, message, code = JobStatus.PENDING, "", 1
    while True:
        now = time.monotonic()
        try:
            if stopped is None and asked():
                server.stop(name)
                stopped = now
            status, message, code = server.status(name)
            if status.ended or now >= next_log:
                log = server.log(name)
                # a long log costs its server something: the longer it took, the rarer it is asked for
                next_log = time.monotonic() + max(poll_seconds, 20.0 * (time.monotonic() - now))
            heard = time.monotonic()
        except httpx.HTTPError as error:
            if time.monotonic() - heard > limits.silence:
                raise JobLost(
                    f"the job server at {server.url} has not answered for {limits.silence:.0f} s ({_why(error)}); job "
                    f"{name} may still be running: submit the same again to follow it"
                ) from error
            time.sleep(poll_seconds)
            continue
        events = list(_events(log))
        for event in events[told:]:
            on_event(event)
        told = max(told, len(events))
        if status.ended:
            return _summary(name, status, message, code, log)
        if stopped is not None and now - stopped > limits.drain + 30.0:
            raise JobLost(f"job {name} was stopped {now - stopped:.0f} s ago and has not ended; see {server.url}")
        if status is JobStatus.PENDING and now - began > limits.pending and stopped is None:
            server.stop(name)
            why = one_line(message) or status
            raise JobFailed(f"job {name} did not begin within {limits.pending:.0f} s and was stopped: {why}")
        time.sleep(poll_seconds)


def _events(log: str) -> Iterator[dict[str, Any]]:
    for line in log.splitlines():
        if line.startswith('{"'):
            try:
                held = json.loads(line)
            except ValueError:
                continue  # a line that is still being written
            if isinstance(held, dict) and "event" in held:
                yield held


def _summary(name: str, status: JobStatus, message: str, code: int, log: str) -> RunSummary:
    """What the run printed last: the one JSON object that spans lines."""
    head, _, rest = log.rpartition("\n{\n")
    body, closed, _ = rest.partition("\n}")
    if head and closed:
        try:
            return RunSummary.model_validate_json("{\n" + body + "\n}")
        except ValidationError as error:
            raise JobFailed(
                f"job {name}: its summary is not of this version of winnow ({error.error_count()} fields)"
            ) from error
    why = _last_words(log) or one_line(message) or "it left no log"
    raise JobFailed(f"job {name} ended {status} without a summary: {why}", code)


def _last_words(log: str) -> str:
    """What winnow itself said last, else the last lines of the log."""
    errors = [str(one["message"]) for one in _events(log) if one.get("level") == "error" and one.get("message")]
    if errors:
        return masked(one_line(errors[-1]))
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith('{"')]
    return masked(one_line(" | ".join(lines[-TAIL_LINES:])))


def _why(error: httpx.HTTPError) -> str:
    return masked(one_line(str(error)) or type(error).__name__)


def _number(submission_id: str | None, key: str) -> int:
    """Of KEY-3 3; 0 for a job of another output."""
    name, _, number = (submission_id or "").rpartition("-")
    return int(number) if name == key and number.isdigit() else 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
