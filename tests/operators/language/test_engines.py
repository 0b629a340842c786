"""What every engine promises, held against the real embedded model in both engines."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from operators.language.engine import Completion, Engine, FinishReason, Request, Sampling

TEXTS = (
    "The old lighthouse on the cape was built in 1871, and for ninety years a keeper lit its lamp every evening.",
    "Bread dough rises because yeast turns sugar into carbon dioxide, which the gluten holds back in small bubbles.",
    "On Tuesday the council voted seven to four to close the bridge to lorries until the cracked bearing is replaced.",
    "To compile the library, install the headers first and run make; the tests take about two minutes on a laptop.",
    "She folded the letter, put it back between the pages of the atlas, and never spoke of the journey again.",
    "A median is less moved by outliers than a mean: one salary of a million leaves the middle of the list alone.",
)
GREEDY = Sampling(max_tokens=10)


def paraphrase(part: int, seed: int = 0, max_tokens: int | None = None) -> Request:
    """A short request; 24 of them differ in text and length."""
    text = " ".join((TEXTS[part % 6] + " " + TEXTS[(part + part // 6) % 6]).split()[: 10 + part])
    return Request(part, (("user", f"Paraphrase: {text}"),), max_tokens, seed)


def complete(engine: Engine, requests: list[Request], sampling: Sampling = GREEDY) -> dict[int, Completion]:
    return {request.part: completion for request, completion in engine.generate(requests, sampling)}


def test_a_greedy_float32_output_does_not_depend_on_its_batch(engine: Engine) -> None:
    requests = [paraphrase(part) for part in range(24)]
    together = complete(engine, requests)
    alone = {r.part: complete(engine, [r])[r.part] for r in requests[::4]}
    assert sorted(together) == list(range(24))
    assert {part: together[part] for part in alone} == alone
    assert len({c.text for c in together.values()}) > 12  # real texts, not one answer to everything


def test_the_engines_agree_on_greedy_text_and_token_counts(vllm_engine: Engine, transformers_engine: Engine) -> None:
    requests = [paraphrase(part) for part in (0, 5, 11, 17)]
    assert complete(vllm_engine, requests) == complete(transformers_engine, requests)


def test_a_fact_survives_paraphrase(engine: Engine) -> None:
    """Catches a wrong chat template or tokenizer, with which the model still produces tokens."""
    question = Request(0, (("user", "What is the capital of France? Answer in one sentence."),))
    answer = complete(engine, [question], Sampling(max_tokens=30))[0]
    assert "Paris" in answer.text
    assert answer.finish_reason is FinishReason.STOP
    assert "<|im" not in answer.text
    assert 20 < answer.prompt_tokens < 60 and 0 < answer.completion_tokens < 30


def test_requests_are_pulled_lazily_and_completions_stream(engine: Engine) -> None:
    """The source never ends by itself before the first completions were seen, and says None in between."""
    seen: list[int] = []
    pulled: list[int] = []

    def source() -> Iterator[Request | None]:
        for part in range(3):
            pulled.append(part)
            yield paraphrase(part, max_tokens=3)
        deadline = time.monotonic() + 60
        while len(seen) < 3:
            assert time.monotonic() < deadline, "the first completions never came while the source stayed open"
            time.sleep(0.002)
            yield None
        pulled.append(3)
        yield paraphrase(3, max_tokens=3)

    for request, completion in engine.generate(source(), GREEDY):
        assert completion.completion_tokens == 3
        assert completion.finish_reason is FinishReason.LENGTH
        seen.append(request.part)
    assert sorted(seen) == pulled == [0, 1, 2, 3]


def test_nothing_asked_nothing_done(engine: Engine) -> None:
    assert complete(engine, []) == {}
    assert list(engine.generate(iter([None, None]), GREEDY)) == []


def test_closing_the_iterator_frees_the_engine(engine: Engine) -> None:
    running = engine.generate((paraphrase(part) for part in range(4)), Sampling(max_tokens=4))
    next(iter(running))
    running.close()  # type: ignore[attr-defined]
    assert complete(engine, [paraphrase(7, max_tokens=2)])[7].completion_tokens == 2


def test_a_prompt_too_long_comes_back_as_an_error_and_stops_nobody(engine: Engine) -> None:
    long = Request(1, (("user", "word " * 400),))
    done = complete(engine, [paraphrase(0, max_tokens=2), long, paraphrase(2, max_tokens=2)])
    assert done[1].finish_reason is FinishReason.ERROR
    assert done[1].text == "" and done[1].completion_tokens == 0 and done[1].prompt_tokens > 400
    assert "256" in done[1].error and "max_model_len" in done[1].error and "\n" not in done[1].error
    assert done[0].finish_reason is done[2].finish_reason is FinishReason.LENGTH


def test_the_budget_ends_where_the_context_does(engine: Engine) -> None:
    near = Request(0, (("user", "Repeat this without end: " + "la " * 190),))
    done = complete(engine, [near], Sampling(max_tokens=200))[0]
    assert 200 < done.prompt_tokens < 256
    assert done.prompt_tokens + done.completion_tokens <= 256


def test_text_that_is_not_unicode_comes_back_as_an_error(engine: Engine) -> None:
    done = complete(engine, [Request(0, (("user", "half a pair: \ud800"),)), paraphrase(1, max_tokens=1)])
    assert done[0].finish_reason is FinishReason.ERROR
    assert "chat template" in done[0].error
    assert done[1].finish_reason is FinishReason.LENGTH


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(engine: Engine) -> None:
    sampling = Sampling(max_tokens=10, temperature=1.0, top_p=0.95)
    batch = [dataclasses.replace(paraphrase(3, seed=seed), part=seed) for seed in range(6)]
    first = complete(engine, batch, sampling)
    assert len({c.text for c in first.values()}) >= 4
    assert complete(engine, [batch[2]], sampling)[2] == first[2]
    assert complete(engine, batch[::-1], sampling) == first


def test_a_seed_has_no_part_in_a_greedy_output(engine: Engine) -> None:
    assert complete(engine, [paraphrase(3, seed=1)]) == complete(engine, [paraphrase(3, seed=2)])


def test_stop_strings_end_the_text_and_are_not_in_it(engine: Engine) -> None:
    whole = complete(engine, [paraphrase(9)])[9]
    words = whole.text.split(" ")
    stop = f" {words[3]}"
    cut = complete(engine, [paraphrase(9)], Sampling(max_tokens=10, stop=("\x00never", stop)))[9]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason is FinishReason.STOP
    assert cut.completion_tokens < whole.completion_tokens


def test_scores_agree_between_the_engines(vllm_engine: Engine, transformers_engine: Engine) -> None:
    texts = [*TEXTS, " ".join(TEXTS), "", "One"]
    for ours, theirs in zip(transformers_engine.score(texts), vllm_engine.score(texts), strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.tokens.dtype == theirs.tokens.dtype == np.int64
        assert ours.log_probs.dtype == theirs.log_probs.dtype == np.float32
        assert ours.log_probs.shape == ours.tokens.shape
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-3, equal_nan=True)


def test_scores_are_log_probabilities_of_the_next_token(engine: Engine) -> None:
    sense, nonsense = engine.score([TEXTS[1], " ".join(TEXTS[1].split()[::-1])])
    assert np.isnan(sense.log_probs[0])  # SmolLM2 has no begin-of-text token
    assert (sense.log_probs[1:] < 0).all()
    assert np.nanmean(sense.log_probs) > np.nanmean(nonsense.log_probs) + 1.0


def test_a_long_text_scores_the_same_in_pieces(transformers_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(TEXTS)
    (whole,) = transformers_engine.score([text])
    monkeypatch.setattr("operators.language.transformers_engine.LOGITS_BYTES", 4 * 49_152 * 20)
    (pieces,) = transformers_engine.score([text])
    np.testing.assert_allclose(whole.log_probs, pieces.log_probs, atol=1e-4, equal_nan=True)


def test_a_text_too_long_to_score_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens and the context takes 255"):
        engine.score(["short", "word " * 300])


def test_one_caller_at_a_time(vllm_engine: Engine) -> None:
    running = vllm_engine.generate([paraphrase(0), paraphrase(1)], GREEDY)
    next(iter(running))
    with pytest.raises(RuntimeError, match="in use by another"):
        vllm_engine.score(["text"])
    running.close()  # type: ignore[attr-defined]


def test_engines_say_what_they_are(engine: Engine) -> None:
    said = engine.describe()  # type: ignore[attr-defined]
    assert said["engine"] == engine.name
    assert (said["dtype"], said["device"], said["context"]) == ("float32", "cpu", "256")


def test_seeded_requests_with_more_prompt_than_one_step_holds(engine: Engine) -> None:
    # vLLM's CPU build cannot take back the draw of a half-read prompt: prompts must not be read in halves
    long = [
        Request(
            part, (("user", f"{part} " + "The ferry leaves the north pier at nine. " * 18),), max_tokens=2, seed=part
        )
        for part in range(24)
    ]
    done = complete(engine, long, Sampling(max_tokens=2, temperature=0.7))
    assert len(done) == 24
    assert all(one.finish_reason is not FinishReason.ERROR for one in done.values())


def test_loading_an_engine_leaves_the_hosts_logging_alone(engine: Engine) -> None:
    # vLLM would configure all logging anew, which deadlocks with the log handlers of a Prefect flow in one process
    assert logging.getLogger("vllm").handlers == []
    assert os.environ.get("VLLM_CONFIGURE_LOGGING", "0") == "0"
