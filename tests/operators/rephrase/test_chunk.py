"""W1: no piece over the budget, sentences whole where they fit, nothing lost."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from operators.rephrase.chunk import LEAST_BUDGET, PIECE_TOKENS, TokenCounter, pieces

SCRIPTS = [
    "The ferry leaves at nine. ",
    'He said "No!" and left. ',
    "3.14 is not the end. ",
    "Ещё одно предложение… ",
    "船は九時に出る。三つの島へ！",
    "ไม่มีช่องว่างระหว่างคำ",
    "नमस्ते दुनिया। फिर से। ",
    "👩‍👩‍👧",
    "\n\n",
    "\t",
    "a" * 90,
    "\x1c",
    "。",
    " ",
]
TEXT = st.lists(st.one_of(st.sampled_from(SCRIPTS), st.text(max_size=12)), max_size=40).map("".join)
RELAXED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(text: str, counter: TokenCounter, budget: int) -> None:
    made = pieces(text, counter, budget)
    last = 0
    for start, end, tokens in made:
        body = text[start:end]
        assert text[last:start].strip() == ""  # only white space lies between pieces
        assert body == body.strip() != ""
        assert tokens == counter.encoded(body) <= budget
        last = end
    assert text[last:].strip() == ""


@RELAXED
@given(TEXT, st.integers(LEAST_BUDGET, 60))
@example("a" * 5000, 16)
@example("船" * 400, 16)
@example("👩‍👩‍👧" * 100, 16)
@example("word " * 400, 16)
@example("\U0001f469\u200d" * 60 + ". Then.", 16)
def test_nothing_is_lost_and_no_piece_is_over(counter: TokenCounter, text: str, budget: int) -> None:
    check(text, counter, budget)


@pytest.fixture(scope="module")
def unsplit() -> TokenCounter:
    """A tokenizer whose tokens run over white space, as SentencePiece's may: counts of words do not add up."""
    words = ["a b", "b c", ". T", "the ", " the", "a ", " a"]
    characters = sorted({*"abcdefghijklmnopqrstuvwxyz .,!T", "<unk>", *"".join(words)})
    vocabulary = {token: number for number, token in enumerate([*characters, *words])}
    merges = [(word[:-1], word[-1]) for word in words if len(word) == 2]
    return TokenCounter(Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>")))


@RELAXED
@given(TEXT, st.integers(LEAST_BUDGET, 60))
def test_a_tokenizer_that_does_not_split_at_spaces(unsplit: TokenCounter, text: str, budget: int) -> None:
    check(text, unsplit, budget)


def test_which_tokenizers_add_up(counter: TokenCounter, unsplit: TokenCounter) -> None:
    assert counter.additive
    assert not unsplit.additive
    byte_level: Any = Tokenizer(models.BPE({one: n for n, one in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert TokenCounter(byte_level).additive
    byte_level.add_tokens(["two words"])
    assert not TokenCounter(byte_level).additive


def test_pieces_end_at_sentence_ends(counter: TokenCounter, news: list[str]) -> None:
    inside = cut = 0
    for text in news[:60]:
        made = pieces(text, counter, 80)
        for start, end, tokens in made[:-1]:
            if text[end - 1] in ".!?…\"')" or text[end] == "\n":
                inside += 1
            else:
                # a sentence was cut: together with what follows up to its end it must be over the budget
                cut += 1
                stop = min((text.find(mark, end) for mark in ".!?" if text.find(mark, end) >= 0), default=len(text))
                assert counter.encoded(text[start : stop + 1]) > 80
                assert tokens > 40
    assert inside > 10 * cut
    assert inside > 100


def test_sentences_are_packed_as_full_as_they_go(counter: TokenCounter) -> None:
    sentence = "The ferry leaves the north pier at nine and comes back at noon."
    made = pieces(" ".join([sentence] * 40), counter, PIECE_TOKENS)
    each = counter.encoded(" " + sentence)
    assert all(tokens > PIECE_TOKENS - 2 * each for _, _, tokens in made[:-1])


def test_scripts_without_spaces_are_cut_at_their_own_stops(counter: TokenCounter) -> None:
    text = "船は九時に出る。三つの島へ郵便を運ぶ。風の強い日には出ない。" * 6
    made = pieces(text, counter, 80)
    assert len(made) > 2
    assert all(text[end - 1] == "。" for _, end, _ in made)


def test_white_space_has_no_pieces(counter: TokenCounter) -> None:
    assert pieces("", counter) == pieces(" \n\t\u3000", counter) == []


def test_a_budget_too_small_is_refused(counter: TokenCounter) -> None:
    with pytest.raises(ValueError, match="at least 16"):
        pieces("text", counter, 15)


def test_pieces_of_news_are_exact(counter: TokenCounter, news: list[str]) -> None:
    for text in news[:40]:
        check(text, counter, 64)


def test_remembered_words_make_it_fast(counter: TokenCounter, news: list[str]) -> None:
    """Measured 8.8 MB per second of one core on a busy machine; this bound only catches what is far slower."""
    for text in news:
        pieces(text, counter)
    began = time.process_time()
    for text in news:
        pieces(text, counter)
    megabytes = sum(len(text.encode()) for text in news) / 1e6
    assert megabytes / (time.process_time() - began) > 2
