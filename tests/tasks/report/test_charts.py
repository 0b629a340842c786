"""Charts and numbers: lengths follow counts, a log axis is chosen where it is needed, sizes stay bounded."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.charts import MAX_BARS, MAX_COLUMNS, chart, is_skewed
from tasks.report.numbers import duration, rate, share, short
from tasks.summary import Histogram

NB = "\N{NO-BREAK SPACE}"


def lengths(svg: str, side: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<rect [^>]*?{side}="([\d.]+)"', svg)]


def test_bars_are_as_long_as_their_counts() -> None:
    svg = str(chart(Histogram(title="T", unit="rows", bins=["a", "b", "c"], counts=[100, 50, 0]), "x"))
    one, half, none = lengths(svg, "width")
    assert half == pytest.approx(one / 2, abs=0.1) and none == 0
    assert "log axis" not in svg


def test_skewed_counts_get_a_log_axis_and_it_can_be_refused() -> None:
    histogram = Histogram(title="T", unit="rows", bins=["a", "b", "c"], counts=[100_000, 1_000, 10])
    assert is_skewed(histogram.counts)
    a, b, c = lengths(str(chart(histogram, "x")), "width")
    assert a - b == pytest.approx(b - c, abs=0.2) and c > 10
    assert "log axis" in chart(histogram, "x") and "log axis" not in chart(histogram, "x", log=False)


def test_many_ordered_bins_are_columns_and_are_merged() -> None:
    histogram = Histogram(title="T", unit="rows", bins=[str(i) for i in range(500)], counts=[7] * 500)
    svg = str(chart(histogram, "x"))
    assert len(lengths(svg, "height")) <= MAX_COLUMNS and "0 to 10: 77" in svg


def test_many_names_end_in_the_others() -> None:
    histogram = Histogram(title="T", unit="rows", bins=[f"lang {'x' * i}" for i in range(90)], counts=[7] * 90)
    svg = str(chart(histogram, "x"))
    assert len(lengths(svg, "width")) == MAX_BARS and "75 others: 525" in svg


@pytest.mark.parametrize("values", [[], [0, 0], [-1]])
def test_nothing_counted(values: list[int]) -> None:
    assert "Nothing was counted" in chart(Histogram(title="T", unit="r", bins=["a"] * len(values), counts=values), "x")


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=60), st.sampled_from(["{}", "name {}", "x"]))
def test_any_counts_stay_inside_the_frame(values: list[int], label: str) -> None:
    svg = str(
        chart(Histogram(title="harm", unit="r", bins=[label.format(i) for i in range(len(values))], counts=values), "x")
    )
    for x, width in re.findall(r'<rect [^>]*x="([\d.]+)"[^>]*?width="([\d.]+)"', svg):
        assert float(x) + float(width) <= 440


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9_999, "9,999"), (10_000, f"10.0{NB}k"), (999_999, f"1.00{NB}M"), (1_234_567, f"1.23{NB}M"),
     (1_200_000_000, f"1.20{NB}B"), (99_960, f"100{NB}k"), (5e20, f"500000{NB}Q")],
)  # fmt: skip
def test_short_numbers(count: float, text: str) -> None:
    assert short(count) == text


def test_shares_rates_and_durations() -> None:
    assert share(1, 10**9) == f"<{NB}0.01{NB}%" and share(0, 5) == f"0{NB}%" and share(1, 0) == "–"
    assert share(999_999, 10**6) == f"99.99{NB}%" and share(5, 5) == f"100{NB}%"
    assert rate(10, 0) == "–" and rate(30, 4) == "7.5"
    assert duration(0.42) == f"0.42{NB}s" and duration(59.7) == f"1{NB}min{NB}00{NB}s"
    assert duration(7_500) == f"2{NB}h{NB}05{NB}min" and duration(10 * 86_400) == f"10{NB}d{NB}0{NB}h"
