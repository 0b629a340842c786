"""What winnow costs beside doing the same by hand, and beside two peers. Not a test:

    python tests/benchmarks/overhead stage
    python tests/benchmarks/overhead two-workers
    python tests/benchmarks/overhead rephrase
    python tests/benchmarks/overhead peers --datatrove-python PYTHON --curator-python PYTHON

Every side is a fresh process over the same shards; the sides take turns. Start-up (imports, Ray, models) ends when the
workers are ready (where there are several, at the mean of their times) and is told apart; what follows, to the last
byte committed, is the work that is compared. The peers stand in environments of their own, made with pip:
``datatrove[io]==0.10.1 pydantic scikit-learn scipy`` and ``nemo-curator==1.4.0 pydantic scikit-learn scipy``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import HERE, Side, alone, environment, joined, spread, together
from shards import write_shards

from operators.safety.harm_score import HarmScore
from tasks.models import resolve
from tasks.runs import machine, versions


def side(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def say(name: str, told: Side) -> Side:
    """Told as it comes: a run takes minutes."""
    print(json.dumps({"side": name, **told}), file=sys.stderr, flush=True)
    return told


def stage(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One worker on Ray, one in a thread, against a bare loop: wall and CPU time of the work."""
    size = write_shards(work / "source", given.rows, given.shards)
    rounds: dict[str, list[Side]] = {"bare": [], "ray": [], "local": []}
    for number in range(given.rounds):
        for name, sides in rounds.items():
            output = work / f"{name}-{number}"
            command = side("annotating.py", name, work / "source", output, "--workers", 1)
            sides.append(say(name, alone(command, environment(), work / "logs")))
    return {"rows": given.rows, "text_megabytes": round(size / 1e6, 1), "shards": given.shards, **_ratios(rounds)}


def two_workers(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Two workers on Ray against two bare processes that began together, each with every other shard."""
    size = write_shards(work / "source", given.rows, given.shards)
    rounds: dict[str, list[Side]] = {"bare": [], "ray": []}
    for number in range(given.rounds):
        outputs = [work / f"bare-{number}-{half}" for half in range(2)]
        start = work / f"start-{number}"
        source = work / "source"
        halves = [
            side("annotating.py", "bare", source, output, "--part", f"{half}/2", "--start", start)
            for half, output in enumerate(outputs)
        ]
        waiting = [start.with_name(f"{start.name}-{output.name}") for output in outputs]
        begin = lambda waiting=waiting, start=start: all(map(Path.exists, waiting)) and start.touch()  # noqa: E731
        rounds["bare"].append(say("bare", joined(together(halves, environment(), work / "logs", begin))))
        command = side("annotating.py", "ray", source, work / f"ray-{number}", "--workers", 2)
        rounds["ray"].append(say("ray", alone(command, environment(), work / "logs")))
    return {"rows": given.rows, "text_megabytes": round(size / 1e6, 1), "shards": given.shards, **_ratios(rounds)}


def rephrase(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Tokens a second of the rephrase stage against those of ``vllm.LLM.generate`` on the same prompts."""
    write_shards(work / "source", given.rows, given.shards)
    rounds: dict[str, list[Side]] = {"bare": [], given.executor: []}
    for number in range(given.rounds):
        for name, sides in rounds.items():
            output = work / f"{name}-{number}"
            command = side("rephrasing.py", name, work / "source", output, "--threads", given.threads)
            sides.append(say(name, alone(command, environment(given.threads), work / "logs")))
    counts = {(one["requests"], one["tokens"]) for sides in rounds.values() for one in sides}
    if len(counts) != 1:
        raise SystemExit(f"the sides did not do the same: (requests, tokens) {sorted(counts)}")
    [(requests, tokens)] = counts
    speed = {name: [round(tokens / one["seconds"], 1) for one in sides] for name, sides in rounds.items()}
    ratios = [ours / theirs for ours, theirs in zip(speed[given.executor], speed["bare"], strict=True)]
    told = {"requests": requests, "tokens": tokens, "threads": given.threads, "tokens_per_second": speed}
    return {**told, "speed_ratio": spread(ratios), "sides": rounds}


def peers(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The same filter with the same workers; rows a second of the work, and the ids kept are compared."""
    models = {name: str(resolve(reference).path) for name, reference in HarmScore().models().items()}
    pythons = {"winnow": sys.executable, "datatrove": given.datatrove_python, "curator": given.curator_python}
    for name in [name for name, python in pythons.items() if not python]:
        print(f"!!! {name} is left out: no --{name}-python was given", file=sys.stderr, flush=True)
        del pythons[name]
    told: dict[str, Any] = {}
    for filter_name in given.filters:
        source = work / f"source-{filter_name}"
        rows = given.rows if filter_name == "rule" else given.harm_rows
        size = write_shards(source, rows, given.shards)
        rounds: dict[str, list[Side]] = {name: [] for name in pythons}
        for number in range(given.rounds):
            kept: dict[str, str] = {}
            for name, python in pythons.items():
                output = work / f"{filter_name}-{name}-{number}"
                output.mkdir()
                ready = output / "ready"
                path = f"{Path(python).parent}:{os.environ['PATH']}"  # Curator starts the command ray
                env = environment(OVERHEAD_READY=str(ready), OVERHEAD_MODELS=json.dumps(models), PATH=path)
                more = ["--executor", given.executor] if name == "winnow" else []
                shared = ["--filter", filter_name, "--workers", str(given.workers)]
                command = [python, str(HERE / f"{name}_side.py"), str(source), str(output), *shared, *more]
                one = alone(command, env, work / "logs", ready)
                rounds[name].append(say(f"{filter_name} {name}", {"total_seconds": one["seconds"], **one}))
                kept[name] = (output / "kept.json").read_text()
            if len(set(kept.values())) > 1:
                raise SystemExit(
                    f"{filter_name}: the sides kept other rows: { ({k: len(v) for k, v in kept.items()}) }"
                )
        told[filter_name] = {"rows": rows, "text_megabytes": round(size / 1e6, 1), **_speeds(rounds, rows)}
    return {"workers": given.workers, "shards": given.shards, "executor": given.executor, **told}


def _ratios(rounds: dict[str, list[Side]]) -> dict[str, Any]:
    """Every other side's time over that of the bare one, round by round."""
    told: dict[str, Any] = {}
    for name, sides in rounds.items():
        if name != "bare":
            pairs = list(zip(sides, rounds["bare"], strict=True))
            told[f"{name}_wall_ratio"] = spread([one["seconds"] / bare["seconds"] for one, bare in pairs])
            told[f"{name}_cpu_ratio"] = spread([one["cpu_seconds"] / bare["cpu_seconds"] for one, bare in pairs])
    return {**told, "sides": rounds}


def _speeds(rounds: dict[str, list[Side]], rows: int) -> dict[str, Any]:
    speeds = {name: [rows / one["work_seconds"] for one in sides] for name, sides in rounds.items()}
    decision = [rows / one["decision_seconds"] for one in rounds["winnow"]]
    told: dict[str, Any] = {f"{name}_rows_per_second": spread(values) for name, values in speeds.items()}
    told["winnow_decision_rows_per_second"] = spread(decision)
    others = [values for name, values in speeds.items() if name != "winnow"]
    if others:
        best = [max(round_) for round_ in zip(*others, strict=True)]
        told["corpus_over_better_peer"] = spread([a / b for a, b in zip(speeds["winnow"], best, strict=True)])
        told["decision_over_better_peer"] = spread([a / b for a, b in zip(decision, best, strict=True)])
    return {**told, "sides": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description="winnow's overhead on this machine")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder that is removed")
    kinds = parser.add_subparsers(dest="kind", required=True)
    runs: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
        "stage": stage,
        "two-workers": two_workers,
        "rephrase": rephrase,
        "peers": peers,
    }
    rows = {"stage": 280_000, "two-workers": 280_000, "rephrase": 20, "peers": 600_000}
    shards = {"stage": 30, "two-workers": 30, "rephrase": 2, "peers": 30}
    for name, run in runs.items():
        kind = kinds.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        kind.add_argument("--rows", type=int, default=rows[name])
        kind.add_argument("--shards", type=int, default=shards[name])
        kind.add_argument("--rounds", type=int, default=1 if name == "peers" else 2)
        if name == "rephrase":
            kind.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
        if name in ("rephrase", "peers"):
            kind.add_argument("--executor", choices=["ray", "local"], default="ray")
        if name == "peers":
            kind.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
            kind.add_argument("--harm-rows", type=int, default=200_000)
            kind.add_argument("--filters", nargs="+", choices=["rule", "harm"], default=["rule", "harm"])
            kind.add_argument("--datatrove-python", default="", help="Python of an environment with datatrove")
            kind.add_argument("--curator-python", default="", help="Python of an environment with NeMo Curator")
    given = parser.parse_args()
    load, began = os.getloadavg()[0], time.monotonic()
    with TemporaryDirectory(prefix="winnow-overhead-") as temporary:
        work = given.folder or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        told = runs[given.kind](given, work.resolve())
    identity = {"load_average_before": round(load, 2), **machine(), "versions": versions()}
    print(json.dumps({"kind": given.kind, **told, "took_seconds": round(time.monotonic() - began), **identity}))


if __name__ == "__main__":
    main()
