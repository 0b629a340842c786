"""Secrets in every place where a person puts one, runs that succeed and that fail, and a search of all that is left.

Real: Prefect's server with its database and a password, a block on it, Ray with a token, S3 with a key, the command
line. A fake, named so: the model's server, which wants a key and repeats it in its errors.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.store import Store
from tests.canaries import Canary, Sampler, canaries, found, in_bytes, in_folder
from tests.conftest import CANARY_ACCESS, CANARY_SECRET, free_port
from tests.flows.serve.serving import WINNOW
from tests.misbehaving_server import MisbehavingServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PLANTED = {
    "block_s3_secret": CANARY_SECRET,
    "block_engine_key": "sk-cAnary-block-engine-93ab5d70e1f2",
    "block_hub_token": "hf_cAnaryBlockHub71d0e6b2f94a",
    "block_further": "cAnary further=variable+of/the block",
    "wrong_s3_secret": "cAnary/wrong+secret/5e1f2a93",
    "wrong_session_token": "cAnary//wrong+session+token//93ab5d70==",
    "wrong_engine_key": "sk-cAnary-wrong-engine-b2f94a71d0e6",
    "environment_s3_secret": "cAnary/environment+secret/f2a935e1",
    "environment_session_token": "cAnary/environment+session/a935e1f2==",
    "environment_openai": "sk-cAnary-environment-openai-e1f293ab",
    "environment_hub": "hf_cAnaryEnvironmentHub2f94a71d0",
    "ray_token": "cAnary-ray-token-0123456789abcdef0123456789abcdef",
    "prefect_password": "cAnary-prefect-password-70e1f293ab5d",
    "password_in_url": "cAnary-password-in-url-f94a71d0e6b2",
    "signature_in_url": "cAnarysignatureinurl4a71d0e6b2f9",
    "metadata": "cAnary-in-no-place-that-winnow-reads-d0e6b2f94a71",
}
SAVE = """
import json, sys
from flows.credentials import WinnowCredentials
for name, held in json.load(sys.stdin).items():
    WinnowCredentials(**held).save(name)
"""
FLOW = """
import json, sys
from flows.curate_text import curate_text
from flows.parameters import CurateText
curate_text(CurateText(**json.load(sys.stdin)))
"""


@dataclass
class Place:
    """Folders that a run may write to, each of its own; what it said; and the services that it talks to."""

    folder: Path
    ray: Path
    api: str
    environment: dict[str, str]
    said: dict[str, bytes] = field(default_factory=dict)

    def run(self, what: str, command: list[str], code: int | None, stdin: str = "", **more: str) -> str:
        ended = subprocess.run(
            command,
            input=stdin.encode(),
            capture_output=True,
            timeout=500,
            check=False,
            cwd=self.folder / "work",
            env={**self.environment, **more},
        )
        self.said[what] = ended.stdout + ended.stderr
        text = self.said[what].decode()
        assert code is None or ended.returncode == code, f"{what}: {ended.returncode}: {text[-3000:]}"
        return text

    def api_says(self, path: str) -> bytes:
        """All that the API has of a kind, as the UI asks for it."""
        pages, offset = b"", 0
        with httpx.Client(timeout=60, trust_env=False, auth=("admin", PLANTED["prefect_password"])) as client:
            while True:
                answer = client.post(f"{self.api}/{path}/filter", json={"limit": 200, "offset": offset})
                answer.raise_for_status()
                pages += answer.content
                if len(answer.json()) < 200:
                    return pages
                offset += 200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Iterator[Place]:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    folder = tmp_path_factory.mktemp("canaries")
    for name in ("home", "work", "tmp", "server", "client"):
        (folder / name).mkdir()
    ray = Path(tempfile.mkdtemp(prefix="wn-", dir="/tmp"))  # Ray's sockets want a short path
    port = free_port()
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # converted models, too large to make anew
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG", "AWS_ENDPOINT_URL") if name in os.environ},
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "RAY_TMPDIR": str(ray),
        "XDG_CACHE_HOME": cache,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(folder / "client"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": f"admin:{PLANTED['prefect_password']}",
        "AWS_ACCESS_KEY_ID": "winnow-environment",
        "AWS_SECRET_ACCESS_KEY": PLANTED["environment_s3_secret"],
        "AWS_SESSION_TOKEN": PLANTED["environment_session_token"],
        "OPENAI_API_KEY": PLANTED["environment_openai"],
        "HF_TOKEN": PLANTED["environment_hub"],
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": PLANTED["ray_token"],
    }
    server_environment = {
        **environment,
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_SERVER_API_AUTH_STRING": environment["PREFECT_API_AUTH_STRING"],
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=server_environment, stdout=log, stderr=log, cwd=folder / "work")
    one = Place(folder, ray, environment["PREFECT_API_URL"], environment)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[-2000:]
            try:
                httpx.get(f"{one.api}/health", timeout=5, trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.3)
        yield one
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)
        shutil.rmtree(ray, ignore_errors=True)


def blocks(endpoint: str) -> dict[str, dict[str, Any]]:
    right = {"aws_access_key_id": CANARY_ACCESS, "aws_endpoint_url": endpoint, "aws_region": "us-east-1"}
    whole = {**right, "aws_secret_access_key": CANARY_SECRET, "engine_api_key": PLANTED["block_engine_key"]}
    return {
        "right": {
            **whole,
            "hf_token": PLANTED["block_hub_token"],
            "environment": {"SOME_FURTHER_VARIABLE": PLANTED["block_further"]},
        },
        "wrong-store": {
            **right,
            "aws_secret_access_key": PLANTED["wrong_s3_secret"],
            "aws_session_token": PLANTED["wrong_session_token"],
        },
        "wrong-engine": {**whole, "engine_api_key": PLANTED["wrong_engine_key"]},
    }


def write_input(folder: Path) -> None:
    text = (
        "The old lighthouse on the cape was built in 1871, and a keeper lit its lamp every evening for ninety years. "
    )
    (folder / "in").mkdir()
    rows = [json.dumps({"id": str(n), "text": f"{text * 3} It is number {n}."}) + "\n" for n in range(6)]
    (folder / "in" / "a.jsonl").write_text("".join(rows))
    (folder / "in" / "b.parquet").write_bytes(b"PAR1, and no table")  # a shard that fails in every stage


def test_nothing_that_a_run_leaves_or_shows_holds_a_secret(place: Place, s3: str) -> None:
    wanted = canaries(**PLANTED)
    write_input(place.folder)
    output = f"{s3}/canaries-{os.getpid()}-{int(time.time())}"
    given = {"input": str(place.folder / "in"), "output": output, "engine": "openai"}
    given |= {"keep": "lang = 'en'", "synthetic_share": None, "max_quarantine": 1, "retries": 1, "workers": 1}
    port = free_port()
    winnow = [WINNOW, "--log-format", "json", "--log-level", "debug", "--metrics-port", str(port)]
    winnow += ["--metrics-file", str(place.folder / "work" / "run.prom")]
    curate = [*winnow, "curate-text", "--json", "--config", "/dev/stdin"]
    with (
        Sampler(wanted, f"http://127.0.0.1:{port}/metrics") as sampler,
        MisbehavingServer(["ok", "echo_key", "ok", "400"], key=PLANTED["block_engine_key"]) as server,
    ):
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        place.run("register", [sys.executable, "-m", "prefect", "block", "register", "-m", "flows.credentials"], 0)
        place.run("save", [sys.executable, "-c", SAVE], 0, json.dumps(blocks(endpoint)))

        def start(what: str, code: int | None, credentials: str | None, **changes: Any) -> str:
            held = {**given, "engine_url": server.url, "credentials": credentials, **changes}
            return place.run(
                what,
                curate,
                code,
                json.dumps({k: v for k, v in held.items() if v is not None or k == "synthetic_share"}),
            )

        # what works, but for a shard that cannot be read: from a block alone, against what the environment holds
        said = start("run", 1, "right")
        assert {one.authorization for one in server.asked} == {f"Bearer {PLANTED['block_engine_key']}"}
        assert len(server.asked) > 4 and '"crashed": false' in said
        # what is refused: by the store, by the model's server, by us
        assert "access refused" in start("store refuses", 2, "wrong-store")
        assert "Incorrect API key" in start("engine refuses", 2, "wrong-engine")
        start("environment alone", 2, None)
        password = f"s3://me:{PLANTED['password_in_url']}@lake/in"
        assert "holds a password" in start("password in URL", 2, "right", input=password)
        signed = f"https://host/a.jsonl?X-Amz-Signature={PLANTED['signature_in_url']}"
        assert "is a signed URL" in start("signed URL", 2, "right", input=signed)
        assert "no such block" in start("no block", 2, "nowhere")
        # a flow that fails inside Prefect, with its traceback in Prefect's log
        flow = {**given, "engine_url": server.url, "credentials": "wrong-store", "executor": "local"}
        told = place.run("flow", [sys.executable, "-c", FLOW], 1, json.dumps(flow), PREFECT_LOGGING_LEVEL="DEBUG")
        assert "Traceback" in told and "access refused" in told
        looks = [WINNOW, "--log-format", "json"]
        with_key = {"AWS_ACCESS_KEY_ID": CANARY_ACCESS, "AWS_SECRET_ACCESS_KEY": CANARY_SECRET, "AWS_SESSION_TOKEN": ""}
        place.run("status", [*looks, "status", output], None, **with_key)
        place.run("verify", [*looks, "verify", output], None, **with_key)
    assert sampler.looked > 100 and sampler.pages > 3
    assert any("raylet" in one for one in sampler.commands) and any("winnow" in one for one in sampler.commands)

    # the same search, for what may stand there: where it finds nothing, it looked at the wrong place
    control = canaries(control=output.rpartition("/")[2])
    assert in_storage(output, control) and len(in_prefect(place, control)) >= 4
    assert in_folder(place.folder / "work", control)[0] and in_bytes(place.said["run"], control, "said")
    assert in_folder(place.ray, canaries(control="raylet"))[0]

    lines = sorted(sampler.lines)
    lines += in_storage(output, wanted)
    lines += in_prefect(place, wanted)
    logs, files = in_folder(place.ray, wanted)
    assert files > 20 and any(one.suffix == ".log" for one in place.ray.rglob("*")), "Ray's session is elsewhere"
    lines += logs
    left, files = in_folder(place.folder, wanted, leave_out=("prefect.db", "prefect.db-wal", "prefect.db-shm"))
    assert files > 5 and (place.folder / "work" / "run.prom").stat().st_size > 500
    lines += left
    for what, said in place.said.items():
        assert said or what == "save", what
        lines += in_bytes(said, wanted, f"what {what!r} said")
    assert lines == []


def in_storage(output: str, wanted: list[Canary]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", CANARY_ACCESS)
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY_SECRET)
        store = Store(output)
        entries = store.entries()
        paths = [entry.path for entry in entries]
        for part in (".winnow/reports/", ".winnow/runs/", ".winnow/ledger/", ".winnow/quarantine/", "corpus/"):
            assert any(path.startswith(part) for path in paths), f"nothing in {part}"
        lines = [line for path in paths for line in in_bytes(store.read(path), wanted, path)]
        return lines + found("\n".join(paths).encode(), wanted, "names of objects")


def in_prefect(place: Place, wanted: list[Canary]) -> list[str]:
    """Everything of the database, row by row: SQLite cuts what is long over pages. And what the API shows."""
    with sqlite3.connect(place.folder / "server" / "prefect.db") as database:
        dump = "\n".join(database.iterdump())
    assert "curate_text" in dump and "winnow-credentials" in dump and len(dump) > 100_000
    lines = in_bytes(dump.encode(), wanted, "Prefect's database")
    for kind in ("flow_runs", "task_runs", "logs", "artifacts", "block_documents", "deployments"):
        said = place.api_says(kind)
        assert len(said) > 100 or kind == "deployments", f"Prefect has no {kind}"
        lines += in_bytes(said, wanted, f"Prefect's {kind}")
    return lines
