"""From a flow's parameters to the engine that rephrases."""

from __future__ import annotations

from typing import Final

from flows.parameters import CurateText
from operators.language.choose import OPENAI
from operators.language.engine import EngineSettings
from operators.language.openai_api import base_urls

AROUND_TOKENS: Final = 100
"""What stands round a piece in a prompt, at most: a style's instructions and a chat template, some 80."""
_USUAL_CONTEXT: Final = 2048
_LONGEST_WAIT: Final = 300.0


def engine_settings(parameters: CurateText) -> EngineSettings:
    """The engine as asked for; what a fleet's servers say of themselves is filled in by ``preflight.fleet``.

    Raises EngineError, a ValueError, for a URL that is none.
    """
    if parameters.engine != OPENAI:
        return EngineSettings(
            kind=parameters.engine,
            model=parameters.model,
            dtype=parameters.dtype,
            gpus=parameters.engine_gpus,
            threads=parameters.engine_threads,
        )
    # an answer that takes longer than a stall would be cut off by the stall, and paid for again
    wait = min(_LONGEST_WAIT, parameters.stall_seconds / 2)
    return EngineSettings(
        kind=OPENAI,
        model=parameters.model,
        max_in_flight=parameters.engine_concurrency,
        max_model_len=max(_USUAL_CONTEXT, longest_request(parameters)),
        urls=base_urls(parameters.engine_url) if parameters.rephrase else (),
        served_model=parameters.engine_model or "",
        requests_per_minute=parameters.requests_per_minute,
        tokens_per_minute=parameters.tokens_per_minute,
        request_seconds=wait,
        patience_seconds=wait,
    )


def longest_request(parameters: CurateText) -> int:
    """Tokens of the longest prompt and its answer together."""
    return parameters.piece_tokens + AROUND_TOKENS + parameters.max_new_tokens
