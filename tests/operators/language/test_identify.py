from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from operators.language.identify import UNDETERMINED, LanguageId

SENTENCES = {
    "en": "The river rises in the hills and runs past three small towns to the sea.",
    "de": "Der Fluss entspringt in den Bergen und fließt an drei kleinen Städten vorbei zum Meer.",
    "fr": "La rivière prend sa source dans les collines et coule jusqu'à la mer.",
    "ru": "Река берёт начало в горах и течёт мимо трёх городов к морю.",
    "bg": "Реката извира от планината и тече покрай три малки града към морето.",
    "ja": "川は山から流れ出て、三つの小さな町を通って海に注ぐ。",
    "ar": "ينبع النهر من التلال ويجري عبر ثلاث مدن صغيرة إلى البحر.",
}


@pytest.fixture(scope="module")
def language(lid: Path) -> LanguageId:
    operator = LanguageId()
    operator.setup({"model": lid})
    return operator


def lang(operator: LanguageId, *texts: str) -> list[tuple[str, float]]:
    table = operator(pa.table({"text": list(texts)}))
    assert table.schema == LanguageId.adds
    return list(zip(table.column("lang").to_pylist(), table.column("lang_score").to_pylist(), strict=True))


def test_seven_languages(language: LanguageId) -> None:
    found = lang(language, *SENTENCES.values())
    assert [code for code, _ in found] == list(SENTENCES)
    assert all(0.5 < score <= 1 for _, score in found)


def test_white_space_is_in_no_language(language: LanguageId) -> None:
    assert lang(language, "", " \n\t\u3000") == [(UNDETERMINED, 0.0)] * 2


def test_line_breaks_are_spaces(language: LanguageId) -> None:
    text = SENTENCES["de"]
    assert lang(language, text) == lang(language, text.replace(" ", "\r\n"))


def test_only_the_start_is_looked_at(lid: Path) -> None:
    short = LanguageId(characters=60)
    short.setup({"model": lid})
    assert lang(short, SENTENCES["en"][:60] + SENTENCES["ru"] * 50) == lang(short, SENTENCES["en"][:60])
    assert short.identity() != LanguageId().identity()


def test_odd_text_does_no_harm(language: LanguageId) -> None:
    odd = ["\x00", "👩‍👩‍👧", "a" * 100_000, "__label__en", "1234567890", "\u202e\u200b"]
    assert len(lang(language, *odd)) == len(odd)


def test_a_row_does_not_depend_on_its_batch(language: LanguageId) -> None:
    texts = list(SENTENCES.values())
    assert lang(language, *texts) == [lang(language, text)[0] for text in texts]


def test_setup_comes_first() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        LanguageId()(pa.table({"text": ["a"]}))
