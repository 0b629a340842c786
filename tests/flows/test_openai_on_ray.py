"""``winnow curate-text --engine openai`` as a person starts it, with workers on Ray: what is left holds no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.misbehaving_server import MisbehavingServer

CANARY = "sk-canary-93ab5d70e1f2"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_from_the_command_line_leaves_no_key(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    (tmp_path / "in").mkdir()
    text = (
        "The old lighthouse on the cape was built in 1871, and a keeper lit its lamp every evening for ninety years. "
    )
    rows = [json.dumps({"id": str(n), "text": f"{text * 3} It is number {n}."}) + "\n" for n in range(6)]
    (tmp_path / "in" / "a.jsonl").write_text("".join(rows))
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
    environment |= {"WINNOW_ENGINE_API_KEY": CANARY, "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", "")}
    environment["XDG_CACHE_HOME"] = environment["XDG_CACHE_HOME"] or str(Path.home() / ".cache")
    # the second request is refused with a message that repeats the key, so that errors are searched too
    with MisbehavingServer(["ok", "echo_key"], key=CANARY) as server:
        command = [str(Path(sys.executable).parent / "winnow"), "curate-text", "--engine", "openai", "--json"]
        command += ["--engine-url", server.url, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        command += ["--keep", "lang = 'en'", "--synthetic-share", "none", "--max-quarantine", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert {one.authorization for one in server.asked} == {f"Bearer {CANARY}"}, "workers on Ray had no key"
        told = next(one for one in json.loads(done.stdout)["stages"] if one["name"] == "rephrase")["notes"]
        assert told["requests sent"] == len(server.asked) == told["answers"] + told["retries"] and told["retries"] == 1
    assert CANARY not in done.stdout + done.stderr
    left = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert len(left) > 10
    for file in left:
        held = file.read_bytes()
        if file.suffix == ".parquet":
            held += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        assert CANARY.encode() not in held, file
