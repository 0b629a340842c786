"""Jobs on the job server of a real head. Most run a stand-in for winnow, a script that ends as the test wants it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.submit import RayJob
from tasks import ray_job
from tasks.job_server import JobFailed, JobLost, JobRefused, JobServer, JobStatus
from tasks.ray_job import Job, Limits, find_or_submit, follow
from tasks.runs import last_run
from tasks.store import Store
from tasks.summary import RunSummary, Status
from tests.nodes import TOKEN, Nodes, free_port, until
from tests.toys import documents

pytestmark = pytest.mark.timeout(400)
CANARY = "sk-canary-5d0e7f3a9b21"
WINNOW = str(Path(sys.executable).parent / "winnow")
STAND_IN = """
import json, os, signal, sys, time
given = json.loads(sys.stdin.read())
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
def event(**parts):
    print(json.dumps({"level": "info", **parts}), file=sys.stderr, flush=True)
print("a line of somebody else", flush=True)
event(event="stage_began", stage="language", shards=4, found=0)
end = time.monotonic() + given["seconds"]
while time.monotonic() < end and not asked:
    time.sleep(0.05)
if given["how"] == "fails":
    event(event="said", level="error", message="input: s3://lake/none holds no shards", secret=os.environ.get("SECRET"))
    raise SystemExit(2)
if given["how"] == "breaks":
    raise RuntimeError("it broke here")
status = "bounded" if asked else "done"
event(event="stage_ended", stage="language", status=status, shards_made=4)
summary = {"run_id": "r", "flow": "curate_text", "status": status, "started": "now", "input": "i", "output": "o"}
summary["messages"] = [os.environ.get("PLAIN", "")]
print(json.dumps(summary, indent=2), flush=True)
raise SystemExit(1 if asked else 0)
"""


@pytest.fixture(scope="module")
def nodes(ray_head: Nodes) -> Nodes:
    return ray_head


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    words = f"exec {sys.executable} {script} <<'WINNOW'\n{{parameters}}\nWINNOW"
    monkeypatch.setattr(ray_job, "ENTRY", words)
    return words


@pytest.fixture
def server(nodes: Nodes) -> Iterator[JobServer]:
    with JobServer(nodes.dashboard) as one:
        yield one


def job(tmp_path: Path, how: str = "ends", seconds: float = 0.0, **more: Any) -> Job:
    limits = Limits(drain=20.0, silence=20.0)
    return Job(**{"output": str(tmp_path), "parameters": {"how": how, "seconds": seconds}, "limits": limits, **more})


def jobs_of(server: JobServer, one: Job) -> list[str]:
    names = [held["submission_id"] or "" for held in server.jobs()]  # empty: a driver that nobody submitted
    return [name for name in names if name.startswith(one.key)]


def test_a_job_is_submitted_followed_and_its_summary_is_the_run_s(
    server: JobServer, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIN", "forwarded")
    one = job(tmp_path, seconds=1.0, forward=("PLAIN",))
    name, found = find_or_submit(server, one)
    heard: list[dict[str, Any]] = []
    summary = follow(server, name, one.limits, on_event=heard.append, poll_seconds=0.2)
    assert not found and summary.status is Status.DONE
    assert summary.messages == ["forwarded"]
    assert [(event["event"], event["stage"]) for event in heard] == [
        ("stage_began", "language"),
        ("stage_ended", "language"),
    ]
    again, found = find_or_submit(server, one)
    assert not found and again != name, "a job that ended is no reason not to run"
    follow(server, again, one.limits, poll_seconds=0.2)


def test_a_job_that_is_asked_to_stop_drains(server: JobServer, entry: str, tmp_path: Path) -> None:
    one = job(tmp_path, seconds=300.0)
    name, _ = find_or_submit(server, one)
    heard: list[str] = []
    summary = follow(
        server, name, one.limits, lambda: bool(heard), lambda event: heard.append(event["event"]), poll_seconds=0.2
    )
    assert summary.status is Status.BOUNDED
    assert server.status(name)[0] is JobStatus.STOPPED


def test_a_killed_follower_s_job_is_found_again_and_runs_once(
    nodes: Nodes, server: JobServer, entry: str, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from tasks import ray_job; from tests.tasks.test_ray_job import *\n"
        "ray_job.ENTRY = sys.argv[2]; one = job(Path(sys.argv[3]), seconds=5.0)\n"
        "with JobServer(sys.argv[1]) as server:\n"
        "    name, _ = find_or_submit(server, one); print(name, flush=True); follow(server, name, one.limits)\n"
    )
    words = [sys.executable, "-c", script, nodes.dashboard, entry, str(tmp_path)]
    follower = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    first = follower.stdout.readline().strip()
    follower.kill()
    follower.wait(10)
    one = job(tmp_path, seconds=5.0)
    name, found = find_or_submit(server, one)
    assert found and name == first
    with pytest.raises(JobRefused, match=f"job {name} is at work at .* with other parameters; wait for it, or stop it"):
        find_or_submit(server, job(tmp_path, seconds=9.0))
    assert follow(server, name, one.limits, poll_seconds=0.2).status is Status.DONE
    assert jobs_of(server, one) == [name]


def test_who_lost_sight_of_an_ended_job_gets_its_end_and_nobody_else(
    server: JobServer, entry: str, tmp_path: Path
) -> None:
    mine = job(tmp_path, owner="flow-run-1")
    name, _ = find_or_submit(server, mine)
    until(lambda: server.status(name)[0].ended, "the job has ended")
    assert find_or_submit(server, mine) == (name, True)
    other = find_or_submit(server, job(tmp_path, owner="flow-run-2"))
    assert other == (f"{mine.key}-2", False)
    follow(server, other[0], mine.limits, poll_seconds=0.2)


def test_a_job_that_fails_is_told_in_one_line_without_secrets(
    server: JobServer, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "do-not-tell")
    one = job(tmp_path, "fails", forward=("SECRET",))
    name, _ = find_or_submit(server, one)
    with pytest.raises(JobFailed) as refused:
        follow(server, name, one.limits, poll_seconds=0.2)
    assert str(refused.value) == f"job {name} ended FAILED without a summary: input: s3://lake/none holds no shards"
    assert refused.value.exit_code == 2, "the exit code of the command is passed on"
    broken = job(tmp_path, "breaks")
    name, _ = find_or_submit(server, broken)
    # Ray's own lines may come after those of the job
    ended = r"ended FAILED without a summary: .*RuntimeError: it broke here( \| .*)?$"
    with pytest.raises(JobFailed, match=ended) as told:
        follow(server, name, broken.limits, poll_seconds=0.2)
    assert "\n" not in str(told.value) and TOKEN not in str(told.value)


def test_a_variable_that_is_not_set_cannot_be_forwarded(server: JobServer, tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match="^--forward NOT_SET_HERE: it is not set in this environment$"):
        find_or_submit(server, job(tmp_path, forward=("NOT_SET_HERE",)))


def test_a_cluster_refuses_jobs_without_its_token(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ("", "another-token-another-token-0123456789"):
        monkeypatch.setenv("RAY_AUTH_TOKEN", given)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with (
            JobServer(nodes.dashboard) as server,
            pytest.raises(JobRefused, match=r"refuses us \(40[13]\): set RAY_AUTH"),
        ):
            find_or_submit(server, job(tmp_path))


class Late(JobServer):
    """Sees no job at its first look: somebody else submits between the look and its own submission."""

    looks = 0

    def jobs(self) -> list[dict[str, Any]]:
        self.looks += 1
        return super().jobs() if self.looks > 1 else []


def test_of_two_that_submit_in_the_same_moment_one_is_told_whose_job_runs(
    nodes: Nodes, server: JobServer, entry: str, tmp_path: Path
) -> None:
    mine = job(tmp_path, seconds=300.0)
    name, _ = find_or_submit(server, mine)
    try:
        with Late(nodes.dashboard) as late:
            assert find_or_submit(late, mine) == (name, True)
        with Late(nodes.dashboard) as late, pytest.raises(JobRefused, match=f"job {name} is at work .* with other par"):
            find_or_submit(late, job(tmp_path, seconds=9.0))
    finally:
        server.stop(name)
    assert jobs_of(server, mine) == [name]


def test_what_is_forwarded_can_be_read_by_whoever_sees_the_cluster_s_jobs_and_the_help_says_so(
    nodes: Nodes, server: JobServer, entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what one would wish: it is how Ray keeps a job's environment. If this fails, the help has to change."""
    monkeypatch.setenv("WINNOW_ENGINE_API_KEY", CANARY)
    one = job(tmp_path, forward=("WINNOW_ENGINE_API_KEY",))
    name, _ = find_or_submit(server, one)
    heard: list[str] = []
    summary = follow(server, name, one.limits, on_event=lambda event: heard.append(str(event)), poll_seconds=0.2)
    [held] = [held for held in server.jobs() if held["submission_id"] == name]
    assert held["runtime_env"]["env_vars"]["WINNOW_ENGINE_API_KEY"] == CANARY
    assert CANARY not in held["entrypoint"] + str(held["metadata"]) + str(heard) + summary.model_dump_json()
    told = str(RayJob.model_fields["forward"].description)
    assert "shows their values to whoever may look at its jobs" in told
    assert "shows their values" in (Path(__file__).parents[2] / "infra" / "README.md").read_text()


def test_a_password_in_the_dashboard_s_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(JobRefused, match="^--dashboard: the URL holds a user name or password") as refused:
        JobServer("http://somebody:hunter2@head:8265")
    assert "hunter2" not in str(refused.value)


def test_a_wrong_address_is_refused_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with JobServer(f"http://127.0.0.1:{free_port()}") as server, pytest.raises(JobRefused, match="does not answer"):
        find_or_submit(server, job(tmp_path))
    with pytest.raises(JobRefused, match="give the URL of the cluster's dashboard"):
        JobServer("head:8265")
    assert time.monotonic() - began < 20


def test_a_job_server_that_goes_away_is_given_up_and_said(tmp_path: Path) -> None:
    with (
        JobServer(f"http://127.0.0.1:{free_port()}") as server,
        pytest.raises(
            JobLost, match="has not answered for 1 s .* may still be running: submit the same again to follow it"
        ),
    ):
        follow(server, "winnow-1", Limits(silence=1.0), poll_seconds=0.1)


def submitted(nodes: Nodes, source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    words = [WINNOW, "submit", "--dashboard", nodes.dashboard, "--input", str(source), "--output", str(output)]
    words += ["--no-rephrase", "--max-quarantine", "1", "--json", *more]
    hidden = ("PREFECT_API_URL", "PREFECT_PROFILE", "RAY_ADDRESS")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=inherited)


def some(folder: Path, shards: int) -> Path:
    folder.mkdir()
    for shard in range(shards):
        pq.write_table(documents(2, shard * 2), folder / f"part-{shard:03}.parquet")
    return folder


@pytest.mark.slow
def test_winnow_submit_curates_on_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    command = submitted(nodes, some(tmp_path / "web", 3), tmp_path / "out")
    said, complained = command.communicate(timeout=360)
    assert command.returncode == 0, complained
    summary = RunSummary.model_validate_json(said)
    assert summary.status is Status.DONE and summary.corpus
    assert summary == last_run(Store(str(tmp_path / "out"))), "what the job's run saved is what is shown"
    assert "language" in complained and "shards" in complained


@pytest.mark.slow
def test_ctrl_c_of_winnow_submit_drains_the_job(nodes: Nodes, tmp_path: Path) -> None:
    command = submitted(nodes, some(tmp_path / "web", 120), tmp_path / "out", "--workers", "1")
    try:
        until(
            lambda: command.poll() is not None or len(list((tmp_path / "out").glob("language/**/*.parquet"))) >= 5,
            "the job is under way",
            200,
        )
        command.send_signal(signal.SIGINT)
        said, complained = command.communicate(timeout=200)
    finally:
        command.kill()
    assert command.returncode == 1, complained
    assert "the job drains" in complained and "Traceback" not in complained
    summary = json.loads(said)
    assert summary["status"] == "bounded" and "stopped by SIGTERM" in summary["messages"][-1]
    assert summary["stages"][0]["shards_made"] >= 5 and not summary["corpus"]


@pytest.mark.slow
def test_winnow_submit_refuses_in_one_line(nodes: Nodes, tmp_path: Path) -> None:
    def ended(command: subprocess.Popen[str]) -> tuple[int, str]:
        _, complained = command.communicate(timeout=200)
        return command.returncode, complained

    code, line = ended(submitted(nodes, tmp_path / "none", tmp_path / "out"))
    assert code == 2 and "ended FAILED without a summary" in line and "none" in line, line
    code, line = ended(submitted(nodes, Path("web"), tmp_path / "out"))
    assert (code, line.count("\n")) == (2, 1) and "is relative, and the job runs elsewhere" in line
    code, line = ended(submitted(nodes, tmp_path, tmp_path / "out", "--dashboard", f"http://127.0.0.1:{free_port()}"))
    assert (code, line.count("\n")) == (2, 1) and "does not answer" in line
