"""transformers with a decoding loop of our own: per-request seeds, and rows that leave the batch when they are done."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np

from operators.language.chat import Prompt, context_length, encode, encode_text, finished_text, first_stop
from operators.language.choose import TRANSFORMERS, WAITING, EngineError, resolve_dtype, resolve_threads
from operators.language.engine import Completion, EngineSettings, FinishReason, Request, Sampling, TokenLogProbs

LOGITS_BYTES: Final = 128 * 2**20
"""Most memory that the float32 logits of one step of ``score`` take; longer texts go through in pieces with a cache."""


class _Over(Enum):
    """What ``next`` gives at the end of the requests."""

    OVER = "over"


class TransformersEngine:
    """One model in transformers; batches of ``batch_size`` requests in the order of arrival, padded on the left.

    Padding reaches the last bits of the logits, so a greedy output can depend on its batch: in float32 on a CPU, 24
    prompts padded together and one by one gave logits up to 6e-5 apart, no row bit-equal, and still 24 equal
    outputs of 24 tokens (SmolLM2-135M). The same batch again was always equal. Batch size is part of the identity.
    """

    name = TRANSFORMERS

    def __init__(self, settings: EngineSettings, folder: Path) -> None:
        """Loads safetensors only, never remote code. Raises EngineError (no GPU) and what transformers raises."""
        threads = resolve_threads(settings)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        for key, value in WAITING.items():
            os.environ.setdefault(key, value)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        gpu = settings.gpus > 0
        if gpu and not torch.cuda.is_available():
            raise EngineError(f"engine {self.name}: gpus={settings.gpus:g} but torch sees no GPU; set engine.gpus to 0")
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = resolve_dtype(settings)
        self._device = "cuda" if gpu else "cpu"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **source)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, **source
        )
        self._model.to(self._device).eval()
        self._context = context_length(folder, settings.max_model_len)
        self._batch_size = settings.batch_size
        ends = self._model.generation_config.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id} - {None}
        self._last_only = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._described = {
            "engine": TRANSFORMERS,
            "dtype": dtype,
            "device": "gpu" if gpu else "cpu",
            "threads": str(threads),
            "context": str(self._context),
        }

    def describe(self) -> Mapping[str, str]:
        """Engine, dtype, device, threads and context length, for the run summary."""
        return self._described

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """See :class:`Engine`. A batch is what is at hand, up to ``batch_size``, and runs to its end."""
        source = iter(requests)
        over = False
        while not over:
            batch: list[tuple[Request, Prompt]] = []
            while len(batch) < self._batch_size:
                request = next(source, _Over.OVER)
                if request is _Over.OVER:
                    over = True
                    break
                if request is None:
                    if batch:
                        break
                    continue
                prompt = encode(self._tokenizer, request, sampling, self._context)
                if isinstance(prompt, Prompt):
                    batch.append((request, prompt))
                else:
                    yield request, prompt
            if batch:
                decoding = _Decoding(self, batch, sampling)
                while decoding.rows:
                    yield from decoding.step()

    def score(self, texts: Sequence[str]) -> list[TokenLogProbs]:
        """See :class:`Engine`. One forward pass a text, in pieces whose logits take at most ``LOGITS_BYTES``."""
        self._check_open()
        encoded = [encode_text(self._tokenizer, text, i, self._context) for i, text in enumerate(texts)]
        return [self._score(tokens, conditioned) for tokens, conditioned in encoded]

    def close(self) -> None:
        """Frees the model and its memory."""
        self._model = self._tokenizer = None
        if self._device == "cuda":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeError("the transformers engine is closed; load it again")

    def _score(self, tokens: list[int], conditioned: bool) -> TokenLogProbs:
        import torch
        from transformers import DynamicCache

        values = np.full(len(tokens), np.nan, np.float32)
        piece = max(16, LOGITS_BYTES // (4 * self._model.config.get_text_config().vocab_size))
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._device)
            cache = DynamicCache(config=self._model.config)
            for start in range(0, len(tokens) - 1, piece):
                end = min(start + piece, len(tokens) - 1)
                logits = self._model(ids[:, start:end], past_key_values=cache, use_cache=True).logits[0].float()
                targets = ids[0, start + 1 : end + 1, None]
                scored = logits.gather(1, targets)[:, 0] - logits.logsumexp(1)
                values[start + 1 : end + 1] = scored.cpu().numpy()
        first = int(conditioned)
        return TokenLogProbs(np.asarray(tokens[first:], np.int64), values[first:])


class _Decoding:
    """A batch under way. ``rows``: those not done yet, in the order of the batch dimension of every tensor here."""

    def __init__(self, engine: TransformersEngine, batch: Sequence[tuple[Request, Prompt]], sampling: Sampling) -> None:
        engine._check_open()
        import torch
        from transformers import DynamicCache

        self._engine, self._sampling = engine, sampling
        self.rows = [_Row(request, prompt, sampling) for request, prompt in batch]
        longest = max(len(prompt.tokens) for _, prompt in batch)
        pad = engine._tokenizer.pad_token_id or 0  # masked out, so that any token does
        shape = [(longest - len(prompt.tokens), prompt.tokens) for _, prompt in batch]
        place = engine._device
        self._ids = torch.tensor([[pad] * left + tokens for left, tokens in shape], device=place)
        self._mask = torch.tensor([[0] * left + [1] * len(tokens) for left, tokens in shape], device=place)
        self._cache = DynamicCache(config=engine._model.config)

    def step(self) -> list[tuple[Request, Completion]]:
        """One token more for every row. Returns the rows that are done, which leave the batch."""
        import torch

        engine = self._engine
        with torch.inference_mode():
            positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
            last = {"logits_to_keep": 1} if engine._last_only else {}
            logits = (
                engine._model(
                    self._ids,
                    attention_mask=self._mask,
                    position_ids=positions,
                    past_key_values=self._cache,
                    use_cache=True,
                    **last,
                )
                .logits[:, -1]
                .float()
            )
            if self._sampling.temperature > 0:
                cpu = logits.cpu()
                drawn = [row.draw(cpu[i], self._sampling) for i, row in enumerate(self.rows)]
            else:
                drawn = logits.argmax(1).tolist()
            done = {i: c for i, row in enumerate(self.rows) if (c := row.take(drawn[i], engine)) is not None}
            out = [(self.rows[i].request, completion) for i, completion in done.items()]
            kept = [i for i in range(len(self.rows)) if i not in done]
            if done and kept:
                index = torch.tensor(kept, device=self._mask.device)
                self._cache.batch_select_indices(index)
                self._mask = self._mask[index]
            self.rows = [self.rows[i] for i in kept]
            if kept:
                self._ids = torch.tensor([[drawn[i]] for i in kept], device=self._mask.device)
                self._mask = torch.cat([self._mask, self._mask.new_ones(len(kept), 1)], 1)
        return out


class _Row:
    """One request of a batch: what it has so far, and the random numbers that are its own."""

    def __init__(self, request: Request, prompt: Prompt, sampling: Sampling) -> None:
        import torch

        self.request, self._prompt, self._stop = request, prompt, sampling.stop
        self._tokens: list[int] = []
        self._random = torch.Generator().manual_seed(request.seed & (2**63 - 1))

    def draw(self, logits: Any, sampling: Sampling) -> int:
        """A token of the nucleus (Holtzman et al., 2020, arXiv:1904.09751): the fewest tokens that together have
        ``top_p`` of the probability. ``logits``: float32 [vocabulary]. By the inverse of the distribution function
        at one uniform number, so that the batch cannot change which number a row gets."""
        import torch

        p, order = (logits.double() / sampling.temperature).softmax(0).sort(descending=True, stable=True)
        reached = p.cumsum(0)
        size = int(torch.searchsorted(reached, sampling.top_p)) + 1 if sampling.top_p < 1 else len(p)
        size = min(size, len(p))
        u = torch.rand((), generator=self._random, dtype=torch.float64) * reached[size - 1]
        return int(order[min(int(torch.searchsorted(reached[:size], u, right=True)), size - 1)])

    def take(self, token: int, engine: TransformersEngine) -> Completion | None:
        """Adds the token; the completion where it was the last."""
        self._tokens.append(token)
        if token in engine._ends:
            return self._completion(self._text(engine, self._tokens[:-1]), FinishReason.STOP)
        if self._stop:
            text = self._text(engine, self._tokens)
            if (at := first_stop(text, self._stop)) >= 0:
                return self._completion(text[:at], FinishReason.STOP)
        if len(self._tokens) >= self._prompt.budget:
            return self._completion(self._text(engine, self._tokens), FinishReason.LENGTH)
        return None

    def _completion(self, text: str, reason: FinishReason) -> Completion:
        return Completion(finished_text(text, reason), reason, len(self._prompt.tokens), len(self._tokens))

    @staticmethod
    def _text(engine: TransformersEngine, tokens: list[int]) -> str:
        return str(engine._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
