"""Which shards a backfill takes: globs over names, and the dates that real layouts put into paths."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.dataset import Dataset, Shard
from tasks.selection import Selection, SelectionError, glob_pattern, span
from tasks.store import Store

DAY = date(2026, 3, 14)
DAYS = st.dates(date(1990, 1, 1), date(2099, 12, 31))
LAYOUTS = (
    "{0:%Y-%m-%d}.parquet",
    "web/{0:%Y%m%d}-part-00000.jsonl.gz",
    "{0:%Y/%m/%d}/part-0.parquet",
    "date={0:%Y-%m-%d}/part-00007.parquet",
    "crawl/year={0:%Y}/month={0.month}/day={0.day}/a.parquet",
    "year={0:%Y}/month={0:%m}/day={0:%d}/a.parquet",
    "CC-NEWS-{0:%Y%m%d}045602-00123.jsonl",
    "{0:%Y_%m_%d}/x.parquet",
    "year=1999/month=1/{0:%Y-%m-%d}.parquet",
    "2019-01-01/2020-02-02/{0:%Y-%m-%d}.parquet",
    "{0:%Y-%m-%d}/year=2031/month=2/x.parquet",
)


def dataset(*names: str) -> Dataset:
    return Dataset(Store("/web"), tuple(Shard(name=name, path=name) for name in sorted(names)), mark="view")


def names(chosen: Dataset) -> list[str]:
    return [shard.name for shard in chosen.shards]


@given(DAYS, st.sampled_from(LAYOUTS))
def test_the_day_of_every_layout_is_read(day: date, layout: str) -> None:
    assert span(layout.format(day)) == (day, day)


@pytest.mark.parametrize(
    ("path", "first", "last"),
    [
        ("year=2026/month=2/part-0.parquet", date(2026, 2, 1), date(2026, 2, 28)),
        ("month=2024-02/part-0.parquet", date(2024, 2, 1), date(2024, 2, 29)),
        ("2026/12/part-0.parquet", date(2026, 12, 1), date(2026, 12, 31)),
        ("year=2026/part-0.parquet", date(2026, 1, 1), date(2026, 12, 31)),
        ("year=2026/month=3/2026-03-09.parquet", date(2026, 3, 9), date(2026, 3, 9)),
    ],
)
def test_a_path_that_names_no_day_spans_its_month_or_year(path: str, first: date, last: date) -> None:
    assert span(path) == (first, last)


@pytest.mark.parametrize(
    "path",
    [
        "part-00000.parquet",
        "part-20261301.parquet",  # month 13
        "2026-02-30.parquet",
        "2026-00-00.parquet",
        "x120260314.parquet",  # in the middle of a longer number
        "202603141.parquet",
        "CC-MAIN-2026-10/part-0.parquet",  # a week
        "myyear=2026/part-0.parquet",
        "2026-03/14.parquet",
        "year=0/part.parquet",
        "10.1234/20991231999.parquet",
    ],
)
def test_digits_that_are_no_date_are_none(path: str) -> None:
    assert span(path) is None


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_no_path_is_too_strange(path: str) -> None:
    found = span(path)
    assert found is None or found[0] <= found[1]


@given(st.sets(DAYS, min_size=1, max_size=12), DAYS, DAYS)
def test_a_range_takes_exactly_the_shards_in_it(days: set[date], one: date, other: date) -> None:
    first, last = min(one, other), max(one, other)
    source = dataset(*(f"{day:%Y/%m/%d}/a.parquet" for day in days))
    inside = sorted(f"{day:%Y/%m/%d}/a.parquet" for day in days if first <= day <= last)
    if inside:
        chosen, said = Selection(first=first, last=last).of(source)
        assert names(chosen) == inside
        assert said == f"backfill: {len(inside)} of {len(days)} input shards chosen"
        assert chosen.mark == source.mark and chosen.store is source.store
    else:
        with pytest.raises(SelectionError, match=f"between {first} and {last}.* from {min(days)} to {max(days)}"):
            Selection(first=first, last=last).of(source)


@given(st.sets(DAYS, min_size=1, max_size=12), DAYS)
def test_two_ranges_that_meet_take_every_shard_once(days: set[date], cut: date) -> None:
    source = dataset(*(f"{day:%Y-%m-%d}.parquet" for day in days))
    taken: list[str] = []
    for selection in (Selection(last=cut), Selection(first=cut + timedelta(days=1))):
        try:
            taken += names(selection.of(source)[0])
        except SelectionError:
            continue
    assert taken == names(source)


def test_a_month_is_taken_when_any_of_its_days_is_asked_for() -> None:
    source = dataset(*(f"year=2026/month={month}/a.parquet" for month in (2, 3, 4)))
    chosen, _ = Selection(first=date(2026, 2, 28), last=DAY).of(source)
    assert names(chosen) == ["year=2026/month=2/a.parquet", "year=2026/month=3/a.parquet"]


def test_shards_without_a_date_are_left_out_and_counted() -> None:
    source = dataset("2026-03-14.parquet", "2026-03-15.parquet", "extra/a.parquet", "extra/b.parquet")
    chosen, said = Selection(first=DAY).of(source)
    assert names(chosen) == ["2026-03-14.parquet", "2026-03-15.parquet"]
    assert said == (
        "backfill: 2 of 4 input shards chosen; 2 left out because their path holds no date, such as extra/a.parquet"
    )


def test_a_source_without_dates_is_refused_with_names_that_exist() -> None:
    with pytest.raises(SelectionError, match=r"no shard's path holds a date.*a\.parquet, b\.parquet.*--shards") as told:
        Selection(last=DAY).of(dataset("a.parquet", "b.parquet"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("glob", "takes"),
    [
        ("*.parquet", ["c.parquet"]),
        ("**/*.parquet", ["a/1.parquet", "a/b/2.parquet", "c.parquet"]),
        ("a/*", ["a/1.parquet"]),
        ("a/", ["a/1.parquet", "a/b/2.parquet"]),
        ("a/b/2.parquet", ["a/b/2.parquet"]),
        ("?.parquet", ["c.parquet"]),
        ("[!b]/[0-1].parquet", ["a/1.parquet"]),
    ],
)
def test_globs_are_those_of_the_input(glob: str, takes: list[str]) -> None:
    assert names(Selection((glob,)).of(dataset("a/1.parquet", "a/b/2.parquet", "c.parquet"))[0]) == takes


def test_globs_add_up_and_dates_narrow_them() -> None:
    source = dataset(*(f"{kind}/2026-03-1{day}.parquet" for kind in ("news", "web", "wiki") for day in range(3)))
    chosen, said = Selection(("news/*", "web/*"), first=date(2026, 3, 12)).of(source)
    assert names(chosen) == ["news/2026-03-12.parquet", "web/2026-03-12.parquet"]
    assert said == "backfill: 2 of 9 input shards chosen"


def test_a_glob_that_matches_nothing_names_a_few_shards() -> None:
    source = dataset(*(f"part-{part}.parquet" for part in range(7)))
    line = r"no shard matches nope\*, x; it has part-0.parquet, part-1.parquet, part-2.parquet and 4 more$"
    with pytest.raises(SelectionError, match=line):
        Selection(("nope*", "x")).of(source)


def test_no_selection_is_the_dataset_itself() -> None:
    source = dataset("a.parquet")
    assert Selection().of(source) == (source, "") and Selection().of(source)[0] is source
    assert Selection().mark == "" and Selection(("a*",)).mark != Selection(("b*",)).mark


def test_a_glob_that_is_none_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"'\[z-a\]': no glob"):
        glob_pattern("[z-a]")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda one: not set(one) & set("*?[")))
def test_a_name_without_wildcards_is_a_glob_of_itself(name: str) -> None:
    assert glob_pattern(name).fullmatch(name) or name.endswith("/")
