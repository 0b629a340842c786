"""Both sides of ``rephrase``: vLLM by itself over the prompts, and the rephrase stage that makes the same prompts.

Both load the same model with the same arguments, environment and threads; the bare side gets its prompts ready before
its clock starts, the stage cuts, asks, judges and commits inside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from annotating import Watched, started
from shards import files

from operators.language.chat import Prompt, encode
from operators.language.engine import EngineSettings, Request, Sampling
from operators.rephrase.wrap import WrapRephrase
from tasks import stages
from tasks.models import resolve
from tasks.rewrite import Choice
from tasks.source import SourceColumns, open_source
from tasks.stage import Executor, run_stage
from tasks.store import Store

SAMPLING = Sampling(max_tokens=512)


def settings(threads: int) -> EngineSettings:
    return EngineSettings(kind="vllm", dtype="float32", threads=threads)


def _requests(source: Path) -> Iterator[Request]:
    """What the stage asks, each once: equal requests are one."""
    wrap = WrapRephrase()
    wrap.setup({name: resolve(reference).path for name, reference in wrap.models().items()})
    asked: dict[str, Request] = {}
    for shard in files(source):
        for row in pq.read_table(shard, columns=["id", "text"]).to_pylist():
            for request in wrap.requests(row):
                asked.setdefault(request.content(), request)
    yield from asked.values()


def bare(source: Path, threads: int) -> dict[str, Any]:
    from operators.language.vllm_engine import VLLMEngine

    # the product's own loading, so that every argument is the same; from here on it is vLLM alone
    llm = VLLMEngine(settings(threads), resolve(settings(threads).model).path)._llm
    from vllm import SamplingParams

    tokenizer, context = llm.get_tokenizer(), llm.llm_engine.model_config.max_model_len
    prompts = [encode(tokenizer, request, SAMPLING, context) for request in _requests(source)]
    assert all(isinstance(one, Prompt) for one in prompts)
    asked = [{"prompt_token_ids": one.tokens} for one in prompts]
    params = [SamplingParams(max_tokens=one.budget, temperature=0.0) for one in prompts]
    ready = time.monotonic()
    outputs = llm.generate(asked, params, use_tqdm=False)
    done = time.monotonic()
    tokens = sum(len(one.outputs[0].token_ids) for one in outputs)
    return {"ready": ready, "done": done, "requests": len(asked), "tokens": tokens}


def system(source: Path, output: Path, executor: Executor, threads: int) -> dict[str, Any]:
    with started(executor):
        execution = Watched(executor=executor, workers=1)
        dataset = open_source(str(source), SourceColumns(mapping=(("take", "take"),)))
        store = Store(str(output))
        choice = Choice("take", ("yes",), 1.0, 0)
        stage = stages.rewrite("rephrase", WrapRephrase(), settings(threads), SAMPLING, choice, [dataset], store)
        result = run_stage(stage, store, execution)
        done = time.monotonic()
    summary = result.summary
    if summary.status.value != "done" or not summary.accounts.closed():
        raise SystemExit(f"the stage ended {summary.status.value}: {summary.failures[:1]}")
    return {
        "ready": execution.ready[0],
        "done": done,
        "requests": summary.notes["requests"],
        "tokens": summary.accounts.tokens["completion"],
        "setup_seconds": summary.setup_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="one side; started by overhead, not by hand")
    parser.add_argument("side", choices=["bare", "local", "ray"])
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.side == "bare":
        told = bare(given.source, given.threads)
    else:
        told = system(given.source, given.output, Executor(given.side), given.threads)
    print(json.dumps(told))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
