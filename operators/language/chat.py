"""From a request to the token ids that an engine completes: the same in every engine, with one budget rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.language.engine import Completion, FinishReason, Request, Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    """``tokens``: the chat-templated prompt. ``budget``: most tokens to generate, so that both fit into the context."""

    tokens: list[int]
    budget: int


def context_length(folder: Path, wanted: int) -> int:
    """``wanted``, or the model's own longest context where that is less (max_position_embeddings of config.json)."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    longest = config.get("text_config", config).get("max_position_embeddings")
    return min(wanted, longest) if isinstance(longest, int) else wanted


def encode(tokenizer: Any, request: Request, sampling: Sampling, context: int) -> Prompt | Completion:
    """The request through the tokenizer's chat template; a Completion with ``FinishReason.ERROR`` where that fails or
    leaves no room for a single token in ``context`` tokens."""
    messages = [{"role": role, "content": content} for role, content in request.messages]
    try:
        tokens = list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        )
    except Exception as error:  # templates raise what they like: jinja's errors, ValueError, TypeError on bad Unicode
        return failed(f"the chat template could not be applied: {_one_line(error)}")
    if not tokens:
        return failed("the chat template made an empty prompt of the request")
    if len(tokens) >= context:
        return failed(
            f"the prompt has {len(tokens)} tokens and leaves no room in a context of {context}; "
            "use shorter chunks or raise max_model_len",
            len(tokens),
        )
    most = min(sampling.max_tokens, request.max_tokens or sampling.max_tokens)
    return Prompt(tokens, min(most, context - len(tokens)))


def encode_text(tokenizer: Any, text: str, number: int, context: int) -> tuple[list[int], bool]:
    """The tokens of a text to be scored, and whether the first is the begin-of-text token, there only to condition on.

    It is there where the tokenizer itself puts it before a text. One place of the context stays free,
    as vLLM wants it, so that both engines refuse the same texts. Raises ValueError.
    """
    try:
        tokens = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"text {number} cannot be tokenized: {_one_line(error)}; is it valid Unicode?") from error
    around = list(tokenizer("", add_special_tokens=True)["input_ids"])  # what the tokenizer puts round any text
    conditioned = tokenizer.bos_token_id is not None and around[:1] == [tokenizer.bos_token_id]
    if after := len(around) - conditioned:
        tokens = tokens[:-after]  # an end-of-text token is no part of the text
    if len(tokens) >= context:
        raise ValueError(
            f"text {number} has {len(tokens)} tokens and the context takes {context - 1}; cut it or raise max_model_len"
        )
    return tokens, conditioned


def finished_text(text: str, reason: FinishReason) -> str:
    """The text without the half of a character that the token budget may have cut through."""
    return text.rstrip("\ufffd") if reason is FinishReason.LENGTH else text


def failed(error: str, prompt_tokens: int = 0) -> Completion:
    return Completion("", FinishReason.ERROR, prompt_tokens, 0, error)


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first stop string begins in ``text``, -1 where there is none."""
    return min((at for s in stop if s and (at := text.find(s)) >= 0), default=-1)


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
