"""vLLM in the worker's own process, fed continuously: its batch never drains between a caller's blocks."""

from __future__ import annotations

import itertools
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np

from operators.language.chat import Prompt, context_length, encode, encode_text, failed, finished_text
from operators.language.choose import VLLM, WAITING, EngineError, resolve_dtype, resolve_threads
from operators.language.engine import Completion, EngineSettings, FinishReason, Request, Sampling, TokenLogProbs

ASK_AGAIN_AFTER: Final = 10.0
"""An iterable with nothing at hand waits before it says so; while the engine holds work it is asked again only after
ten times as long, so that waiting for more takes at most a tenth of the engine's time."""


class _Over(Enum):
    """What ``next`` gives at the end of the requests."""

    OVER = "over"


_CPU_PREFILL_TOKENS: Final = 2048
"""Tokens of one forward pass on a CPU: bounds the logits of ``score`` (tokens x vocabulary x 4 bytes)."""


class VLLMEngine:
    """One model in vLLM's V1 engine.

    Greedy float32 on a CPU does not depend on the batch: 24 requests together and one by one gave 24 equal
    outputs of 48 tokens (SmolLM2-135M); bfloat16 does depend on it (13 of 24 equal). A sampled request has its seed.
    A prompt's budget ends where the context does, with ``FinishReason.LENGTH``.
    """

    name = VLLM

    def __init__(self, settings: EngineSettings, folder: Path) -> None:
        """Loads safetensors only, never remote code. Raises ImportError (no vLLM) and EngineError (no GPU)."""
        gpu = settings.gpus > 0
        threads = resolve_threads(settings)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        defaults = {
            **WAITING,
            "VLLM_LOGGING_LEVEL": "ERROR",
            # else vLLM reconfigures all logging under the logging lock, which waits for Prefect's log handler, which
            # waits for the lock: a deadlock where both live in one process
            "VLLM_CONFIGURE_LOGGING": "0",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # vLLM pins its threads to the first cores it sees: two workers on a host would sit on the same ones
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_PLUGINS": "",
            "HF_HUB_OFFLINE": "1",
        }
        if not gpu:
            # else the first ``score`` compiles for some 15 s, and needs a C++ compiler
            defaults["TORCHDYNAMO_DISABLE"] = "1"
        for key, value in defaults.items():
            os.environ.setdefault(key, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # what vLLM says while it is imported comes before it reads its own level
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())

        import torch

        if gpu and not torch.cuda.is_available():
            raise EngineError(f"engine vllm: gpus={settings.gpus:g} but torch sees no GPU; set engine.gpus to 0")
        torch.set_num_threads(threads)
        with _kept("LD_PRELOAD"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm import LLM

            self._context = context_length(folder, settings.max_model_len)
            where: dict[str, Any] = (
                {"gpu_memory_utilization": settings.gpu_memory_utilization}
                if gpu
                # a prompt is never read in halves: the CPU build cannot take back the draw of a seeded half-read one
                else {
                    "enforce_eager": True,
                    "enable_chunked_prefill": False,
                    "max_num_batched_tokens": max(_CPU_PREFILL_TOKENS, self._context),
                }
            )
            self._llm: Any = LLM(
                model=str(folder),
                dtype=resolve_dtype(settings),
                max_model_len=self._context,
                max_num_seqs=settings.max_in_flight,
                load_format="safetensors",
                use_tqdm_on_load=False,
                trust_remote_code=False,
                seed=0,
                **where,
            )
        self._engine: Any = self._llm.llm_engine
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._most = settings.max_in_flight
        self._numbers = itertools.count()
        self._busy = False
        self._described = {
            "engine": VLLM,
            "dtype": resolve_dtype(settings),
            "device": "gpu" if gpu else "cpu",
            "threads": str(threads),
            "context": str(self._context),
        }

    def describe(self) -> Mapping[str, str]:
        """Engine, dtype, device, threads and context length, for the run summary."""
        return self._described

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """See :class:`Engine`. Holds up to ``max_in_flight`` requests; closing the iterator frees what it holds."""
        source = iter(requests)
        held: dict[str, Request] = {}
        over = False
        ask_at = 0.0
        with self._alone():
            try:
                while held or not over:
                    while not over and len(held) < self._most and (not held or time.monotonic() >= ask_at):
                        asked = time.monotonic()
                        request = next(source, _Over.OVER)
                        if request is _Over.OVER:
                            over = True
                        elif request is None:
                            now = time.monotonic()
                            ask_at = now + ASK_AGAIN_AFTER * (now - asked)
                            if held:
                                break
                        elif isinstance(refused := self._add(request, sampling, held), Completion):
                            yield request, refused
                    for output in self._engine.step() if held else ():
                        if output.finished and output.request_id in held:
                            yield held.pop(output.request_id), _completion(output)
            finally:
                if held:
                    self._engine.abort_request(list(held))

    def score(self, texts: Sequence[str]) -> list[TokenLogProbs]:
        """See :class:`Engine`. vLLM's prompt log-probabilities, of the given tokens alone."""
        from vllm import SamplingParams

        encoded = [encode_text(self._tokenizer, text, i, self._context) for i, text in enumerate(texts)]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        scored: dict[int, TokenLogProbs] = {}
        waiting = [i for i, (tokens, _) in enumerate(encoded) if tokens]
        with self._alone():
            held: dict[str, int] = {}
            try:
                while waiting or held:
                    while waiting and len(held) < self._most:
                        number = waiting.pop(0)
                        key = str(next(self._numbers))
                        self._engine.add_request(key, {"prompt_token_ids": encoded[number][0]}, params)
                        held[key] = number
                    for output in self._engine.step():
                        if output.finished and output.request_id in held:
                            number = held.pop(output.request_id)
                            scored[number] = _log_probs(*encoded[number], output.prompt_logprobs)
            finally:
                if held:
                    self._engine.abort_request(list(held))
        return [scored.get(i) or _log_probs(*encoded[i], [None] * len(encoded[i][0])) for i in range(len(encoded))]

    def close(self) -> None:
        """Shuts the engine down and frees its memory. Loading another one afterwards works."""
        if self._llm is None:
            return
        self._engine.engine_core.shutdown()
        self._engine = self._llm = self._tokenizer = None
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory(shutdown_ray=False)

    def _add(self, request: Request, sampling: Sampling, held: dict[str, Request]) -> Completion | None:
        from vllm import SamplingParams

        prompt = encode(self._tokenizer, request, sampling, self._context)
        if not isinstance(prompt, Prompt):
            return prompt
        params = SamplingParams(
            max_tokens=prompt.budget,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop) or None,
            seed=request.seed & (2**63 - 1) if sampling.temperature > 0 else None,
        )
        key = str(next(self._numbers))
        try:
            self._engine.add_request(key, {"prompt_token_ids": prompt.tokens}, params)
        except ValueError as error:  # vLLM's own validation of this one request
            return failed((str(error).strip() or "vLLM refused the request").splitlines()[0], len(prompt.tokens))
        held[key] = request
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One caller at a time: a step gives out the outputs of whatever is in flight, to whoever steps."""
        if self._llm is None:
            raise RuntimeError("the vLLM engine is closed; load it again")
        if self._busy:
            raise RuntimeError("the vLLM engine is in use by another generate or score; finish or close that one first")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


def _completion(output: Any) -> Completion:
    made = output.outputs[0]
    prompt_tokens = len(output.prompt_token_ids or ())
    if made.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        return failed(f"vLLM ended the request with {made.finish_reason!r}", prompt_tokens)
    reason = FinishReason(made.finish_reason)
    return Completion(finished_text(made.text, reason), reason, prompt_tokens, len(made.token_ids))


def _log_probs(tokens: list[int], conditioned: bool, by_place: Sequence[Any]) -> TokenLogProbs:
    """``by_place``: for each place None (the first) or a mapping from token id to what vLLM knows of it."""
    values = [np.nan if at is None else at[token].logprob for token, at in zip(tokens, by_place, strict=True)]
    first = int(conditioned)
    return TokenLogProbs(np.asarray(tokens[first:], np.int64), np.asarray(values[first:], np.float32))


@contextmanager
def _kept(name: str) -> Iterator[None]:
    """vLLM's CPU platform sets LD_PRELOAD for workers that we do not start; our own children must not get it."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
