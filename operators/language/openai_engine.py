"""A server, or a fleet of them, that speaks OpenAI's API, as an engine: bounded and patient, and it keeps accounts.

An event loop in a thread of its own holds at most ``max_in_flight`` requests; :mod:`openai_client` sends them. Weights
and batches are the server's: whether the same request gets the same answer again is up to it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import orjson

from operators.language.chat import encode_text, failed
from operators.language.choose import OPENAI
from operators.language.engine import Completion, EngineSettings, Request, Sampling, TokenLogProbs
from operators.language.openai_api import Key, chat_answer, chat_body, prompt_log_probs
from operators.language.openai_client import Client, Limits, RowRefused
from operators.language.tokens import LocalTokenizer

TEMPLATE_TOKENS: Final = 40
"""What a chat template puts round the messages, about: SmolLM2's takes 30, with the system prompt that it adds."""
_WAIT: Final = 0.05
_STEP: Final = 30.0
"""Seconds that anything may take that only this process has a part in."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """``tokens``: as counted here; ``trial``: see :meth:`Client.ask`."""

    body: bytes
    tokens: int
    budget: int
    trial: bytes


class _Over(Enum):
    OVER = "over"


class OpenAIEngine:
    """See :class:`Engine`, and :class:`RemoteEngine` for ``spent`` and ``drain``."""

    name = OPENAI

    def __init__(self, settings: EngineSettings, folder: Path, limits: Limits | None = None) -> None:
        """``folder``: the model's tokenizer, by which prompts are counted here. Asks no server anything."""
        self._settings, self._limits = settings, limits or Limits()
        self._key = Key.from_environment()
        self._tokenizer = LocalTokenizer(folder)
        self._draining = threading.Event()
        self._drain_by = float("inf")
        self._busy = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._paid: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="winnow-openai")
        self._thread.start()
        self._client = self._do(self._connected())

    def describe(self) -> Mapping[str, str]:
        """Engine, the model's name on the server, endpoints, concurrency and context, for the run summary."""
        settings = self._settings
        return {
            "engine": OPENAI,
            "served model": settings.served_model,
            "endpoints": str(len(settings.urls)),
            "concurrency": str(settings.max_in_flight),
            "context": str(settings.max_model_len),
        }

    def spent(self) -> Mapping[str, int]:
        """So far: requests sent, retries, answers, answers lost on their way, and the tokens paid for answers."""
        return {name: count for name, count in (self._client.spent + self._paid).items() if count}

    def drain(self) -> None:
        """Sends nothing any more; what is on the wire is awaited for ``Limits.drain`` seconds. It cannot be undone."""
        if not self._draining.is_set():
            self._drain_by = time.monotonic() + self._limits.drain
            self._draining.set()
            self._soon(self._client.drain)

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """See :class:`Engine`. Raises EngineError where the servers refuse every request, FleetDown where none
        answers, both after what was on the wire came back. Drained, it ends without what was not sent."""
        source, over, held = iter(requests), False, 0
        done: queue.SimpleQueue[tuple[Request, asyncio.Task[Completion]]] = queue.SimpleQueue()
        fatal: BaseException | None = None
        with self._alone():
            try:
                while held or not over:
                    over = over or self._draining.is_set()
                    while not over and held < self._settings.max_in_flight and done.empty():
                        request = next(source, _Over.OVER)
                        if request is _Over.OVER:
                            over = True
                        elif request is None:
                            break
                        elif isinstance(prompt := self._prompt(request, sampling), Completion):
                            yield request, prompt
                        else:
                            held += 1
                            self._soon(self._begin, request, prompt, done)
                    try:
                        request, task = done.get(timeout=_WAIT if held else 0)
                    except queue.Empty:
                        self._look_after()
                        continue
                    held -= 1
                    if task.cancelled():
                        continue
                    error = task.exception()
                    if error is None:
                        yield request, task.result()
                    elif isinstance(error, RowRefused):
                        yield request, failed(str(error))
                    elif fatal is None:
                        fatal = error
                        self.drain()
                if fatal is not None:
                    raise fatal
            finally:
                if held:
                    self._do(self._cancelled())

    def score(self, texts: Sequence[str]) -> list[TokenLogProbs]:
        """See :class:`Engine`. By vLLM's prompt_logprobs, else by echo; ValueError where the server offers neither."""
        encoded = [
            encode_text(self._tokenizer, text, number, self._settings.max_model_len)
            for number, text in enumerate(texts)
        ]
        with self._alone():
            return self._do(self._scored(encoded), seconds=None)

    def close(self) -> None:
        """Cancels what is in flight, closes the connections and ends the thread."""
        if not self._thread.is_alive():
            return
        self._draining.set()
        self._do(self._cancelled())
        self._do(self._client.close())
        self._soon(self._loop.stop)
        self._thread.join(_STEP)
        self._loop.close()

    async def _connected(self) -> Client:
        return Client(self._settings, self._key, self._limits)

    def _prompt(self, request: Request, sampling: Sampling) -> _Prompt | Completion:
        """The budget ends where the context does, as far as that can be counted here."""
        name, context = self._settings.served_model, self._settings.max_model_len
        try:
            tokens = TEMPLATE_TOKENS + sum(self._tokenizer.count(content) for _, content in request.messages)
            most = min(sampling.max_tokens, request.max_tokens or sampling.max_tokens)
            budget = max(1, min(most, context - tokens))
            trial = chat_body(name, Request(0, (("user", "Say yes."),)), sampling, 1)
            return _Prompt(chat_body(name, request, sampling, budget), tokens, budget, trial)
        except (ValueError, TypeError) as error:  # text that is no Unicode
            return failed(f"the request cannot be sent: {' '.join(str(error).split())[:200]}")

    def _begin(self, request: Request, prompt: _Prompt, done: queue.SimpleQueue[Any]) -> None:
        task = self._loop.create_task(self._complete(prompt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: done.put((request, task)))

    async def _complete(self, prompt: _Prompt) -> Completion:
        most = prompt.tokens + prompt.budget
        answer = await self._client.ask("chat/completions", prompt.body, most, chat_answer, prompt.trial)
        prompt_tokens, made = answer.prompt_tokens, answer.completion_tokens
        if prompt_tokens is None or made is None:
            self._paid["answers without usage"] += 1
            prompt_tokens, made = prompt.tokens, self._tokenizer.count(answer.text)
        self._client.tokens.give_back(most - prompt_tokens - made)
        self._paid["prompt tokens paid"] += prompt_tokens
        self._paid["completion tokens paid"] += made
        return Completion(answer.text, answer.finish_reason, prompt_tokens, made, answer.error)

    async def _scored(self, encoded: list[tuple[list[int], bool]]) -> list[TokenLogProbs]:
        turn = asyncio.Semaphore(self._settings.max_in_flight)

        async def one(number: int, tokens: list[int], conditioned: bool) -> TokenLogProbs:
            async with turn:
                values = await self._log_probs(number, tokens) if tokens else []
            first = int(conditioned)
            known = [np.nan if value is None else value for value in values]
            return TokenLogProbs(np.asarray(tokens[first:], np.int64), np.asarray(known[first:], np.float32))

        return list(await asyncio.gather(*(one(n, *tokens) for n, tokens in enumerate(encoded))))

    async def _log_probs(self, number: int, tokens: list[int]) -> list[float | None]:
        asked = {"model": self._settings.served_model, "prompt": tokens, "max_tokens": 1, "temperature": 0}
        trial = chat_body(self._settings.served_model, Request(0, (("user", "Say yes."),)), Sampling(), 1)
        why = ""
        for more in ({"prompt_logprobs": 0}, {"echo": True, "logprobs": 0}):
            try:
                held = await self._client.ask(
                    "completions", orjson.dumps({**asked, **more}), len(tokens) + 1, lambda held: held, trial
                )
                return prompt_log_probs(held, tokens)
            except (RowRefused, LookupError, ValueError) as error:
                why = why or str(error)
        raise ValueError(
            f"text {number} cannot be scored by {self._settings.served_model!r} ({why}); score with engine vllm or "
            "transformers"
        )

    def _look_after(self) -> None:
        if not self._thread.is_alive():
            raise RuntimeError("the engine's event loop ended")
        if time.monotonic() > self._drain_by:
            self._do(self._cancelled())

    async def _cancelled(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _soon(self, call: Any, *arguments: Any) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _do(self, work: Coroutine[Any, Any, T], seconds: float | None = _STEP) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One caller at a time, as with every engine."""
        if not self._thread.is_alive():
            raise RuntimeError("the engine is closed; load it again")
        if self._busy:
            raise RuntimeError("the engine is in use by another generate or score; finish or close that one first")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
