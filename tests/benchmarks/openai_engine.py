"""What the openai engine costs beside a bare httpx loop with the same number of requests open. Not a test:

    python tests/benchmarks/openai_engine.py --requests 4000 --concurrency 64

A dummy server in a process of its own answers at once (``--delay`` seconds later) with one fixed answer. Engine and
loop take turns, and the medians of their requests per second and of their CPU time go into one JSON line. On a busy
machine the CPU time is what can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

import httpx

from operators.language.engine import EngineSettings, Request, Sampling
from operators.language.openai_engine import OpenAIEngine
from tasks.models import resolve
from tasks.runs import machine

ANSWER = json.dumps(
    {
        "choices": [
            {"message": {"role": "assistant", "content": "An answer of some length. " * 20}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 330, "completion_tokens": 120, "total_tokens": 450},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
PROMPT = "Write the text below again in clear, well-made English. Text: " + "A sentence of some seven words here. " * 40


class Dummy(asyncio.Protocol):
    """Reads a request by its Content-Length and answers it; knows no more of HTTP."""

    delay = 0.0

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self.data = body[length:]
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.transport.write, RESPONSE)
        else:
            self.transport.write(RESPONSE)


def serve(port: Connection, delay: float) -> None:
    async def run() -> None:
        Dummy.delay = delay
        server = await asyncio.get_running_loop().create_server(Dummy, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


Speed = tuple[float, float]
"""Requests per second, and milliseconds of CPU for one of them."""


def measured(requests: int, began: float, cpu: float) -> Speed:
    return requests / (time.perf_counter() - began), (time.process_time() - cpu) / requests * 1000


async def bare(url: str, requests: int, concurrency: int) -> Speed:
    body = {"model": "dummy", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 512, "temperature": 0.0}
    left = iter(range(requests))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def work() -> None:
            for _ in left:
                answer = (await client.post(f"{url}/chat/completions", json=body)).json()
                assert answer["choices"][0]["message"]["content"]

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return measured(requests, began, cpu)


def engine(url: str, requests: int, concurrency: int) -> Speed:
    settings = EngineSettings(kind="openai", urls=(url,), served_model="dummy", max_in_flight=concurrency)
    made = OpenAIEngine(settings, resolve(settings.model).path)
    asked = (Request(number, (("user", PROMPT),)) for number in range(requests))
    began, cpu = time.perf_counter(), time.process_time()
    count = sum(not one.error for _, one in made.generate(asked, Sampling(max_tokens=512)))
    speed = measured(requests, began, cpu)
    made.close()
    assert count == requests
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description="requests per second of engine openai and of a bare httpx loop")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that the server takes for an answer")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, given.delay), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    load = os.getloadavg()[0]
    loops, engines = [], []
    for _ in range(given.rounds):
        loops.append(asyncio.run(bare(url, given.requests, given.concurrency)))
        engines.append(engine(url, given.requests, given.concurrency))
    server.kill()
    server.join(10)
    told = {
        **vars(given),
        "engine_requests_per_second": round(statistics.median(one for one, _ in engines)),
        "httpx_requests_per_second": round(statistics.median(one for one, _ in loops)),
        "engine_cpu_ms": round(statistics.median(cpu for _, cpu in engines), 2),
        "httpx_cpu_ms": round(statistics.median(cpu for _, cpu in loops), 2),
        "speed_ratio": round(statistics.median(e[0] / b[0] for e, b in zip(engines, loops, strict=True)), 2),
        "speed_ratios": sorted(round(e[0] / b[0], 2) for e, b in zip(engines, loops, strict=True)),
        "cpu_ratio": round(statistics.median(e[1] / b[1] for e, b in zip(engines, loops, strict=True)), 2),
        "load_average_before": round(load, 2),
        **machine(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
