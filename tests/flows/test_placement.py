"""What a worker's run may not do, and a person's may."""

from __future__ import annotations

from typing import Any

import pytest

from flows.parameters import CurateText
from flows.placement import NO_GPU, check_placement
from flows.signals import FLOW_RUN
from tasks.preflight import Refused


def checked(**changes: Any) -> None:
    check_placement(CurateText(**{"input": "s3://lake/web", "output": "s3://lake/corpus", **changes}))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLOW_RUN, "00000000-0000-0000-0000-000000000000")
    monkeypatch.setenv(NO_GPU, "winnow-cpu")


def test_whole_paths_pass(worker: None) -> None:
    checked()
    checked(input="~/web", output="file:///data/corpus")


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_relative_path_is_refused(worker: None, name: str) -> None:
    with pytest.raises(Refused, match=f"{name}: 'corpus/new' is relative"):
        checked(**{name: "corpus/new"})


def test_gpus_are_refused_in_a_pool_without(worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="start ad-hoc-gpu"):
        checked(engine_gpus=0.5)
    monkeypatch.delenv(NO_GPU)
    checked(engine_gpus=0.5)


def test_a_person_may_do_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FLOW_RUN, raising=False)
    checked(input="web", output="corpus", engine_gpus=1)
