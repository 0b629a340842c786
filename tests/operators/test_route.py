from __future__ import annotations

import pyarrow as pa
import pytest

from operators.route import Route

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "lang": ["en", "en", "fr", None],
        "harm_score": pa.array([0, 5, 0, 0], pa.int8()),
        "lang_score": pa.array([0.9, 0.8, 0.123456, 0.5], pa.float32()),
    }
)
KEEP = "lang = 'en' AND harm_score <= 1"


def test_the_first_condition_met_wins_and_is_the_reason() -> None:
    routes = Route(routes=(("keep", KEEP), ("tag", "harm_score >= 4"), ("all_english", "lang = 'en'")))
    table = routes(TABLE)
    assert table.column("route").to_pylist() == ["keep", "tag", "drop", "drop"]
    assert table.column("route_reason").to_pylist() == [
        KEEP,
        "harm_score >= 4",
        "harm_score=0, lang=fr",
        "harm_score=0, lang=None",
    ]
    assert table.schema == Route.adds


def test_reads_are_the_columns_that_the_conditions_name() -> None:
    route = Route(routes=(("keep", KEEP), ("odd", "lang_score < 0.2")), otherwise="rest")
    assert route.reads == ("harm_score", "lang", "lang_score") == route.columns()
    assert route(TABLE).column("route_reason").to_pylist()[1] == "harm_score=5, lang=en, lang_score=0.8"
    assert route(TABLE).column("route").to_pylist() == ["keep", "rest", "odd", "rest"]


def test_a_null_condition_is_not_met() -> None:
    assert Route(routes=(("not_french", "lang <> 'fr'"),))(TABLE).column("route").to_pylist()[3] == "drop"


@pytest.mark.parametrize(
    ("routes", "says"),
    [
        ((("keep", "lang == == 1"),), "no SQL condition"),
        ((("keep", ""),), "no SQL condition"),
        ((("keep", "1 = 1"),), "names no column"),
        ((("", "lang = 'en'"),), "no route name"),
        ((("keep", "route = 'x'"),), "what routing makes"),
        ((), "at least 1"),
    ],
)
def test_a_bad_condition_is_refused_when_the_operator_is_made(routes: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Route(routes=routes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("language = 'en'", "there is no column 'language'.*there are id, lang"),
        ("harm_score + 1", "gives Int.*no yes or no"),
        ("lang > 3 AND harm_score LIKE 'a%'", "cannot be evaluated"),
    ],
)
def test_a_condition_is_checked_against_the_columns(sql: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        Route(routes=(("keep", sql),)).check(TABLE.schema)
    assert "\n" not in str(error.value)


def test_a_good_condition_passes_the_check() -> None:
    Route(routes=(("keep", KEEP),)).check(TABLE.schema)


def test_rows_do_not_depend_on_their_batch() -> None:
    route = Route(routes=(("keep", KEEP), ("tag", "harm_score >= 4")))
    single = [route(TABLE.slice(row, 1)).to_pylist()[0] for row in range(TABLE.num_rows)]
    assert single == route(TABLE).to_pylist()


@pytest.mark.parametrize(
    "sql", ["x > AVG(x)", "x >= MAX(x)", "ROW_NUMBER() OVER (ORDER BY x) > 1", "SUM(x) OVER (PARTITION BY lang) > 2"]
)
def test_a_condition_that_looks_at_other_rows_is_refused(sql: str) -> None:
    with pytest.raises(ValueError, match="looks at other rows"):
        Route(routes=(("keep", sql),))


@pytest.mark.parametrize(
    "sql", ["lang IN ('Agg', 'Over')", "LENGTH(lang) > 2", "x BETWEEN 1 AND 2", "COALESCE(x, 0) > 1"]
)
def test_a_condition_on_its_own_row_is_taken(sql: str) -> None:
    assert Route(routes=(("keep", sql),)).routes[0][1] == sql
