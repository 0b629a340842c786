"""The flow picture: to scale, complete, inside its frame, for any accounts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.flow import flow_of
from tasks.report.flow_picture import MIN_HEIGHT, NARROW, WIDE, picture
from tasks.summary import RunSummary
from tests.tasks.report.conftest import (
    DOCUMENTS,
    HARMFUL,
    KEPT,
    NOT_ENGLISH,
    PIECES,
    QUARANTINED,
    REJECTED,
    REPHRASED,
    ROWS,
    USED,
    make_empty,
    make_huge,
    make_summary,
)


def bars(svg: str) -> dict[str, float]:
    """Label -> height of its bar, all segments together."""
    groups = re.findall(r"<g><title>(.*?): [\d,]+(?: \(.*?\))?</title>(.*?)<text", svg)
    return {name: sum(float(h) for h in re.findall(r'height="([\d.]+)"', rects)) for name, rects in groups}


def test_nodes_and_links_of_a_whole_run(summary: RunSummary) -> None:
    flow = flow_of(summary)
    shown = {node.label: node.value for node in flow.nodes.values() if node.label}
    assert shown == {
        "Source documents": DOCUMENTS, "Kept": KEPT, "Tagged": HARMFUL, "Dropped": NOT_ENGLISH,
        "Quarantined": QUARANTINED, "Rephrase: accepted": PIECES - REJECTED, "Rephrase: rejected": REJECTED,
        "Corpus": ROWS, "Left out by the mix": PIECES - REJECTED - USED,
    }  # fmt: skip
    read = sum(link.value_from for link in flow.links if link.reads)
    assert read == pytest.approx(REPHRASED)
    into = {link.path[0]: link.value_to for link in flow.links if link.path[-1] == "corpus"}
    assert into == {"Rephrase accepted": USED, "route keep": KEPT, "route tag": HARMFUL}


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_heights_are_to_scale_and_small_flows_stay_visible(summary: RunSummary, size) -> None:
    heights = bars(str(picture(summary, size)))
    scale = heights["Source documents"] / DOCUMENTS
    assert heights["Kept"] == pytest.approx(KEPT * scale, abs=0.2)
    assert heights["Rephrase: accepted"] == pytest.approx((PIECES - REJECTED) * scale, abs=0.2)
    assert heights["Quarantined"] == MIN_HEIGHT


def test_what_the_mix_leaves_out_is_shown() -> None:
    flow = flow_of(make_huge())
    assert flow.nodes["route tagged"].value == 1_000, "a tagged route is not lost among the other routes"
    into = sum(link.value_to for link in flow.links if link.path[-1] == "corpus")
    assert into == pytest.approx(900_000_000)
    onward = 640_000_000 + 800_000_000 + 1_000 - 190
    assert flow.nodes["left"].value == pytest.approx(onward - 900_000_000, abs=50)


def test_no_rows_draw_no_picture() -> None:
    assert "No documents came in" in picture(make_empty(), WIDE)


def test_one_route_and_no_corpus() -> None:
    summary = make_summary()
    summary.stages, summary.routes = summary.stages[:1], {}
    labels = {node.label for node in flow_of(summary).nodes.values()}
    assert labels == {"Source documents", "Annotated", "Quarantined"}


counts = st.integers(0, 10**10)


@given(
    st.dictionaries(st.sampled_from(["keep", "tag", "drop", "rephrase", "recontext", "quarantined"]), counts),
    st.integers(0, 10**10), counts, counts, counts,
)  # fmt: skip
def test_any_accounts_give_a_picture_inside_its_frame(routes, documents, accepted, rejected, out) -> None:
    summary = make_summary()
    summary.routes = routes
    summary.stages[0].accounts.rows_in = documents
    rewrite, build = summary.stages[4].accounts, summary.stages[-1].accounts
    rewrite.rows_out, rewrite.outputs = accepted + rejected, {"accepted": accepted, "rejected": rejected}
    build.rows_out, build.outputs = out, {"rows": out}
    for size in (WIDE, NARROW):
        svg = str(picture(summary, size))
        if not documents:
            continue
        assert "nan" not in svg and "inf" not in svg
        frame = re.search(r'viewBox="0 -2 (\d+) (\d+)"', svg)
        assert frame is not None
        width, height = map(int, frame.groups())
        for y, tall in re.findall(r'<rect [^>]* y="(-?[\d.]+)" width="\d+" height="([\d.]+)"', svg):
            assert float(y) >= -0.2 and float(y) + float(tall) <= height
        for path in re.findall(r' d="(.*?)"', svg):
            for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path):
                assert 0 <= float(x) <= width and -2 <= float(y) <= height
