"""A server on loopback that speaks OpenAI's API and misbehaves on purpose, by a schedule that the test gives.

Named a fake: no model is behind it. What it answers is known (the words of the prompt, turned round), so that a test
can tell whether each request got its own answer; what it was asked, and how it behaved, is written down.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import TracebackType
from typing import Any

OK = "ok"
PASSING = (
    "drop cut_headers cut_body truncated_json html wrong_type no_object empty_choices no_choices null_finish "
    "no_message html_502 slow 408 409 425 429 500 503 429_after 503_date gzip_garbage "
    "abort"
).split()
"""Faults after which a second attempt may succeed."""
FINAL = {
    "no_usage": "stop",
    "length": "length",
    "content_filter": "error",
    "tool_calls": "error",
    "refusal": "error",
    "400_too_long": "error",
}
"""Answers that are strange, and answers."""
PAUSES = {"429_after": 0, "pause_second": 1, "pause_hour": 3600}
"""Status 429 with a Retry-After of so many seconds."""
ENDLESS = ("never", "trickle")
"""Says nothing for ever, or one byte of a body after the other."""
AWAY_SECONDS = 0.2
"""What a Retry-After asks for."""


def answer_to(prompt: str) -> str:
    return " ".join(reversed(prompt.split()))


@dataclass
class Asked:
    """One request: what it asked, what it got, and when (monotonic seconds)."""

    prompt: str
    behaviour: str
    at: float
    body: dict[str, Any]
    authorization: str


@dataclass
class MisbehavingServer:
    """``with MisbehavingServer(schedule) as server``: request number n is treated as ``schedule`` says, others well.

    ``schedule`` may also be a function of the prompt and of how often it was asked before. ``delay``: seconds that a
    model would take. ``slow``: seconds that the fault "slow" takes.
    """

    schedule: Sequence[str] | Callable[[str, int], str] = ()
    delay: float = 0.0
    slow: float = 3.0
    key: str = ""
    models: tuple[dict[str, Any], ...] = ({"id": "toy", "root": "/models/toy", "max_model_len": 4096, "created": 1},)
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """Whole answers sent, by prompt."""
    most_at_once: int = 0
    _inside: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> MisbehavingServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="misbehaving")
        self._thread.start()
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def start(self) -> None:
        """Listens, after a ``stop`` on the same port again."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """Listens no more, and cuts every connection."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        tasks = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serves one request; False where the connection is over."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head[0].split(" ")
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            given = headers.get("authorization", "nothing")
            writer.write(_response(401, {"error": {"message": f"Incorrect API key provided: {given}"}}))
            return True
        if path.endswith("/models"):
            writer.write(_response(200, {"object": "list", "data": list(self.models)}))
            return True
        if method != "POST" or not path.endswith("/chat/completions"):
            writer.write(_response(404, {"detail": "Not Found"}))
            return True
        held = json.loads(body)
        prompt = held["messages"][-1]["content"]
        behaviour = self._behaviour(prompt)
        self.asked.append(Asked(prompt, behaviour, time.monotonic(), held, headers.get("authorization", "")))
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        try:
            await asyncio.sleep(self.slow if behaviour == "slow" else self.delay)
        finally:
            self._inside -= 1
        if behaviour in ENDLESS:
            await self._for_ever(behaviour, writer)
        return self._behave(behaviour, prompt, held, writer)

    async def _for_ever(self, behaviour: str, writer: asyncio.StreamWriter) -> None:
        """Until the client hangs up."""
        if behaviour == "trickle":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.transport.is_closing():
            if behaviour == "trickle":
                writer.write(b" ")
            await asyncio.sleep(0.05)
        raise ConnectionError("the client hung up")

    def _behaviour(self, prompt: str) -> str:
        if callable(self.schedule):
            return self.schedule(prompt, sum(one.prompt == prompt for one in self.asked))
        return self.schedule[len(self.asked)] if len(self.asked) < len(self.schedule) else OK

    def _behave(self, behaviour: str, prompt: str, held: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        good = _answer(prompt, held["model"])
        whole = _response(200, good)
        data = json.dumps(good).encode()
        choice = good["choices"][0]
        if behaviour in (OK, *FINAL) and behaviour != "400_too_long":
            self.answered[prompt] += 1
        if behaviour in (OK, "slow"):
            writer.write(whole)
        elif behaviour == "drop":
            return False
        elif behaviour == "cut_headers":
            writer.write(whole[:30])
            return False
        elif behaviour == "cut_body":
            writer.write(whole[:-20])
            return False
        elif behaviour == "truncated_json":
            writer.write(_bytes(200, data[:-20]))
        elif behaviour == "html":
            writer.write(_bytes(200, b"<html>Please log in</html>", "text/html"))
        elif behaviour == "wrong_type":
            writer.write(_bytes(200, data, "text/plain"))
        elif behaviour == "no_object":
            writer.write(_bytes(200, b"[1, 2]"))
        elif behaviour == "gzip_garbage":
            writer.write(_bytes(200, data, more="Content-Encoding: gzip\r\n"))
        elif behaviour == "empty_choices":
            writer.write(_response(200, {**good, "choices": []}))
        elif behaviour == "no_choices":
            writer.write(_response(200, {"id": "x"}))
        elif behaviour == "no_message":
            writer.write(_response(200, {**good, "choices": [{"finish_reason": "stop"}]}))
        elif behaviour == "null_finish":
            writer.write(_response(200, {**good, "choices": [{**choice, "finish_reason": None}]}))
        elif behaviour == "no_usage":
            writer.write(_response(200, {name: value for name, value in good.items() if name != "usage"}))
        elif behaviour in ("length", "content_filter", "tool_calls", "abort"):
            text = choice["message"]["content"] if behaviour in ("length", "abort") else None
            message = {"role": "assistant", "content": text}
            writer.write(_response(200, {**good, "choices": [{"finish_reason": behaviour, "message": message}]}))
        elif behaviour == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I cannot help with that"}
            writer.write(_response(200, {**good, "choices": [{"finish_reason": "stop", "message": message}]}))
        elif behaviour == "html_502":
            writer.write(_bytes(502, b"<html><h1>502 Bad Gateway</h1></html>", "text/html"))
        elif behaviour in PAUSES:
            more = f"Retry-After: {PAUSES[behaviour]}\r\n"
            writer.write(_response(429, {"error": {"message": "come back later"}}, more))
        elif behaviour == "503_date":
            date = format_datetime(datetime.now(UTC) + timedelta(seconds=AWAY_SECONDS), usegmt=True)
            writer.write(_response(503, {"error": {"message": "restarting"}}, f"Retry-After: {date}\r\n"))
        elif behaviour == "400_too_long":
            said = "This model's maximum context length is 4096 tokens. However, your prompt contains 9000."
            writer.write(_response(400, {"error": {"message": said, "code": 400}}))
        elif behaviour == "echo_key":
            said = f"wrong: {held} {self.asked[-1].authorization}"
            writer.write(_response(500, {"error": {"message": said}}))
        else:
            writer.write(_response(int(behaviour), {"error": {"message": f"behaves like {behaviour}"}}))
        return True


def tokenizer_of_words(folder: Path) -> Path:
    """Makes ``folder`` that of a model whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _answer(prompt: str, model: str) -> dict[str, Any]:
    text, words = answer_to(prompt), len(prompt.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": words + 3, "completion_tokens": words, "total_tokens": 2 * words + 3},
    }


def _response(status: int, held: object, more: str = "") -> bytes:
    return _bytes(status, json.dumps(held).encode(), more=more)


def _bytes(status: int, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    reason = {200: "OK", 401: "Unauthorized", 404: "Not Found", 502: "Bad Gateway"}.get(status, "Status")
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode("latin-1") + body
