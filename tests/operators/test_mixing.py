from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.mixing import BINS, interleave, keep_rates, threshold


@given(
    st.integers(1, 10**12), st.integers(1, 10**12), st.integers(1, 10**12), st.floats(0.01, 0.98), st.floats(0.01, 0.99)
)
def test_rates_give_the_shares_and_waste_nothing(a: int, b: int, c: int, first: float, split: float) -> None:
    tokens = {"a": a, "b": b, "c": c}
    shares = {"a": first, "b": (1 - first) * split, "c": (1 - first) * (1 - split)}
    rates = keep_rates(tokens, shares)
    kept = {name: tokens[name] * rates[name] for name in tokens}
    for name, share in shares.items():
        assert kept[name] / sum(kept.values()) == pytest.approx(share, rel=1e-9)
    assert max(rates.values()) == pytest.approx(1.0)  # a larger corpus of these shares there is none
    assert min(rates.values()) >= 0


def test_a_source_with_no_share_is_left_out() -> None:
    assert keep_rates({"a": 100, "b": 7, "c": 0}, {"a": 1.0, "b": 0.0, "c": 0.0}) == {"a": 1.0, "b": 0.0, "c": 0.0}


@pytest.mark.parametrize(
    ("tokens", "shares", "says"),
    [
        ({"a": 1, "b": 0}, {"a": 0.5, "b": 0.5}, "'b' has a share of 0.5 and no tokens"),
        ({"a": 1}, {"a": 0.5, "b": 0.5}, "'b' is not in both"),
        ({"a": 1, "b": 1}, {"a": 0.5, "b": 0.6}, "sum to 1"),
        ({"a": 1, "b": 1}, {"a": 1.5, "b": -0.5}, "at least 0"),
        ({"a": 1, "b": 1}, {"a": float("nan"), "b": 0.5}, "at least 0"),
    ],
)
def test_bad_shares_are_refused(tokens: dict[str, int], shares: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        keep_rates(tokens, shares)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.137, 0.5, 0.93, 1.0])
def test_a_cut_keeps_its_share_of_tokens(rate: float) -> None:
    generator = np.random.default_rng(1)
    u = generator.random(200_000)
    tokens = np.maximum(1, generator.lognormal(6, 1, u.size)).astype(np.int64)
    histogram = np.bincount((u * BINS).astype(np.int64), tokens, minlength=BINS).astype(np.int64)
    kept = tokens[u < threshold(histogram, rate)].sum() / tokens.sum()
    assert abs(kept - rate) < 0.0005


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.floats(0, 1))
def test_a_cut_errs_by_less_than_one_bin(counts: list[int], rate: float) -> None:
    cut = threshold(counts, rate)
    assert 0 <= cut <= 1
    if sum(counts):
        place = cut * len(counts)
        whole = min(int(place), len(counts))
        inside = (place - whole) * counts[whole] if whole < len(counts) else 0.0
        assert sum(counts[:whole]) + inside == pytest.approx(rate * sum(counts), abs=1e-6 * sum(counts))


def test_a_cut_refuses_what_is_no_rate_or_histogram() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold([1, 2], 1.1)
    with pytest.raises(ValueError, match="none below 0"):
        threshold([1, -2], 0.5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_every_window_of_a_million_tokens_holds_the_share(share: float) -> None:
    """W4: realised token share = requested within .5 %, whatever the lengths: real 700 tokens, rephrases 150."""
    generator = np.random.default_rng(3)
    total = 5_000_000
    parts = {"real": (700, 1 - share), "synthetic": (150, share)}
    names: list[str] = []
    tokens: list[int] = []
    for name, (mean, part) in parts.items():
        left = int(total * part)
        while left > 0:
            drawn = min(left, max(5, int(generator.lognormal(np.log(mean), 0.8))))
            names.append(name)
            tokens.append(drawn)
            left -= drawn
    u = generator.random(len(names))
    order = interleave(
        pa.chunked_array([names]), pa.chunked_array([u]), pa.chunked_array([pa.array(tokens, pa.int32())])
    )
    assert sorted(order.tolist()) == list(range(len(names)))
    ordered = np.array(tokens)[order]
    ends = np.cumsum(ordered)
    synthetic = np.cumsum(np.where(np.array(names)[order] == "synthetic", ordered, 0))
    worst = 0.0
    for start in range(0, len(ends), 97):
        stop = int(np.searchsorted(ends, ends[start] + 1_000_000))
        if stop < len(ends):
            window = (synthetic[stop] - synthetic[start]) / (ends[stop] - ends[start])
            worst = max(worst, abs(float(window) - share))
    assert 0 < worst < 0.005


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1, exclude_max=True), st.integers(0, 500)), max_size=60))
def test_an_order_depends_on_rows_and_not_on_where_they_stood(rows: list[tuple[str, float, int]]) -> None:
    rows = sorted(set(rows))
    order = interleave(*([list(column) for column in zip(*rows, strict=True)] or [[], [], []]))
    assert sorted(order.tolist()) == list(range(len(rows)))
    for name in "abc":
        mine = [rows[row][1] for row in order if rows[row][0] == name]
        assert mine == sorted(mine)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="not one table"):
        interleave(["a"], [0.1, 0.2], [1])
