"""How fast each language engine rephrases on this machine, and whether a batch changes an answer. Not a test:

    python tests/benchmarks/engines.py vllm
    python tests/benchmarks/engines.py transformers --requests 32 --alone 24

Loads the embedded model, lets it rephrase pieces of the news items that gensim ships, and prints one JSON
line. ``--alone N`` asks N of the requests again one by one and counts the answers that are equal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path

from operators.base import row_seed
from operators.language.choose import identity
from operators.language.engine import EngineSettings, Request, Sampling, load_engine
from operators.rephrase.styles import Style, prompt
from tasks.models import resolve
from tasks.runs import machine

WORDS = 60
"""Words of a piece."""


def news(count: int) -> list[str]:
    spec = importlib.util.find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gensim is not installed: run make install")
    file = Path(spec.submodule_search_locations[0]) / "test" / "test_data" / "lee_background.cor"
    lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    return [" ".join(words[:WORDS]) for words in lines if len(words) >= WORDS][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens per second of one language engine on this machine")
    parser.add_argument("engine", choices=["vllm", "transformers"])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of one answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 each request has a seed of its own")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--gpus", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=16, help="of the transformers engine")
    parser.add_argument("--alone", type=int, default=0, help="so many requests again, one by one")
    given = parser.parse_args()
    settings = EngineSettings(
        kind=given.engine, dtype=given.dtype, gpus=given.gpus, batch_size=given.batch_size, max_model_len=1024
    )
    model = resolve(settings.model)
    requests = [
        Request(n, (("user", prompt(Style.MEDIUM, text)),), seed=row_seed(0, n))
        for n, text in enumerate(news(given.requests))
    ]
    sampling = Sampling(max_tokens=given.tokens, temperature=given.temperature)

    load_before = os.getloadavg()[0]
    began = time.monotonic()
    engine = load_engine(settings, model.path)
    loaded = time.monotonic() - began
    list(engine.generate(requests[:1], sampling))  # the first request of a process also warms it up
    began = time.monotonic()
    together = {request.part: completion for request, completion in engine.generate(requests, sampling)}
    seconds = time.monotonic() - began
    tokens = sum(one.completion_tokens for one in together.values())
    equal = 0
    for request in requests[: given.alone]:
        [(_, completion)] = engine.generate([request], sampling)
        equal += completion.text == together[request.part].text
    engine.close()
    print(
        json.dumps(
            {
                **vars(given),
                "identity": identity(settings, model.sha256, model.tokenizer_sha256).engine_version,
                "load_seconds": round(loaded, 1),
                "generated_tokens": tokens,
                "seconds": round(seconds, 1),
                "tokens_per_second": round(tokens / seconds, 1),
                "equal_alone": f"{equal}/{given.alone}",
                "load_average_before": round(load_before, 2),
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
