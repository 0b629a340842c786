"""The arithmetic of a corpus build: keep rates from token shares, cuts from histograms, and the order of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 65536
"""Bins of the token histogram over a row's uniform number: bin b holds the numbers in [b, b+1) / BINS."""


def keep_rates(tokens: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    """Rate in [0, 1] at which each source is sampled so that the corpus has ``shares`` and is as large as can be.

    Sources are only ever downsampled: the scarcest, relative to its share, is kept whole. A source whose
    share is 0 gets rate 0. Shares must cover the same sources and sum to 1. Raises ValueError,
    also for a source without tokens that has a share: leave it out and give the others its share.
    """
    if set(tokens) != set(shares):
        odd = sorted(set(tokens) ^ set(shares))[0]
        raise ValueError(f"source {odd!r} is not in both tokens and shares; name the same sources in both")
    bad = [name for name, share in shares.items() if not (math.isfinite(share) and share >= 0)]
    if bad or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-9):
        raise ValueError(f"token shares {dict(shares)} must be at least 0 and sum to 1")
    for name, share in shares.items():
        if share > 0 and tokens[name] <= 0:
            raise ValueError(f"source {name!r} has a share of {share:g} and no tokens; leave it out of the mix")
    total = min(tokens[name] / share for name, share in shares.items() if share > 0)
    return {name: min(1.0, total * share / tokens[name]) if share > 0 else 0.0 for name, share in shares.items()}


def threshold(histogram: npt.ArrayLike, rate: float) -> float:
    """The cut c for which rows with u < c hold ``rate`` of the tokens; ``histogram``: tokens by bin of u, [BINS].

    Exact at the edges of bins, linear inside one, so that the error is at most one bin's tokens. Rate 1
    gives 1.0 (every u in [0, 1) lies below it), rate 0 gives 0.0. An empty histogram gives ``rate`` itself.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"keep rate {rate} must lie between 0 and 1")
    counts = np.asarray(histogram, dtype=np.int64)
    if counts.ndim != 1 or counts.size == 0 or bool((counts < 0).any()):
        raise ValueError("a token histogram is one row of counts, none below 0")
    below = np.concatenate([[0], np.cumsum(counts)])
    total = int(below[-1])
    if rate in (0.0, 1.0) or total == 0:
        return float(rate)
    wanted = rate * total
    place = int(np.searchsorted(below, wanted, side="left"))
    start = place - 1
    inside = (wanted - float(below[start])) / float(counts[start])
    return (start + inside) / counts.size


def interleave(sources: Sequence[str] | Any, u: Any, tokens: Any) -> npt.NDArray[np.int64]:
    """Order of the rows of one partition in which every window holds the sources in the proportion of their tokens.

    ``sources`` [n] names, ``u`` [n] float uniform numbers, ``tokens`` [n] int (lists, NumPy or Arrow columns).
    Each source is sorted by u; a row's position is the share of its source's tokens that lies before its own
    middle; sources are merged by position, ties by name, then u. The proportion is that of the partition: what the
    cuts gave it, not the requested one. Returns int64 [n] row numbers.
    """
    names = np.asarray(sources, dtype=str)
    place = np.asarray(u, dtype=np.float64)
    weight = np.asarray(tokens, dtype=np.float64)
    if not len(names) == len(place) == len(weight):
        raise ValueError(f"{len(names)} sources, {len(place)} numbers and {len(weight)} token counts are not one table")
    # a row without tokens still needs a place of its own
    weight = np.maximum(weight, 1e-9)
    position = np.empty(len(names), np.float64)
    kinds, source = np.unique(names, return_inverse=True)
    for kind in range(len(kinds)):
        rows = np.flatnonzero(source == kind)
        rows = rows[np.argsort(place[rows], kind="stable")]
        ends = np.cumsum(weight[rows])
        position[rows] = (ends - weight[rows] / 2) / ends[-1]
    order: npt.NDArray[np.int64] = np.lexsort((place, source, position)).astype(np.int64)
    return order
