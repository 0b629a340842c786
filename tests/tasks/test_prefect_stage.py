"""What Prefect may cost a run: nothing. Its client is replaced here by ones that fail, hang or answer."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from tasks import prefect_stage
from tasks.observe import Observer


def test_a_call_that_fails_is_logged_once_and_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    watching, calls = Observer(), []

    def failing(**arguments: Any) -> None:
        calls.append(arguments)
        raise ConnectionError("the API is gone")

    with caplog.at_level(logging.WARNING, "winnow"):
        for _ in range(2):
            notes = prefect_stage._Notes(watching)
            notes.leave(failing, key="one")
            notes.leave(failing, key="two")
            notes.close()
    assert calls == [{"key": "one"}]
    assert watching.prefect_lost
    assert (
        [record.getMessage() for record in caplog.records].count(
            "Prefect is left alone from here, the run goes on: the API is gone"
        )
        == len(caplog.records)
        == 1
    )


def test_a_call_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_stage, "PATIENCE_SECONDS", 0.2)
    watching, release = Observer(), threading.Event()
    notes = prefect_stage._Notes(watching)
    began = time.monotonic()
    notes.leave(release.wait, timeout=30)
    notes.close()
    release.set()
    assert time.monotonic() - began < 5
    assert watching.prefect_lost


def test_a_slow_prefect_gets_the_latest_progress_only(monkeypatch: pytest.MonkeyPatch) -> None:
    release, shown = threading.Event(), []

    def create(progress: float, **more: Any) -> str:
        shown.append(progress)
        release.wait(10)
        return "artifact"

    monkeypatch.setattr(prefect_stage, "create_progress_artifact", create)
    monkeypatch.setattr(prefect_stage, "update_progress_artifact", lambda artifact_id, progress: shown.append(progress))
    notes = prefect_stage._Notes(Observer())
    notes.progress("language", 0.0)
    deadline = time.monotonic() + 10
    while not shown and time.monotonic() < deadline:
        time.sleep(0.01)
    for share in range(1, 101):
        notes.progress("language", float(share))
    release.set()
    notes.close()
    assert shown == [0.0, 100.0]
