"""What a person sees of a run: on a terminal (a real pseudo-terminal), in a file, and as JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.display import ProgressLines, StageDisplay, ending, fitting, parts
from tasks import logs
from tasks.progress import Progress
from tasks.summary import Accounts, Status

ROOT = Path(__file__).resolve().parents[2]
BEGUN = Progress("harm_score", total=12, found=3)
GOING = replace(
    BEGUN,
    made=4,
    failed=1,
    rows=12_345,
    seconds=61.0,
    eta_seconds=192.0,
    rows_per_second=1234.0,
    workers=2,
    busy_seconds=87.5,
    ready_seconds=100.0,
    accounts=Accounts(rows_in=12_000, outcomes={"ok": 11_988, "quarantined": 12}),
)
ENDED = replace(GOING, made=8, seconds=120.0, eta_seconds=0.0, rows=24_000, status=Status.FAILED)
SIMPLE = replace(BEGUN, made=9, seconds=3.0, status=Status.DONE, accounts=Accounts(rows_in=90, outcomes={"ok": 90}))
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+: \S.*")


def in_a_file(*told: Progress, width: int = 80) -> list[str]:
    stream = io.StringIO()
    with StageDisplay(Console(file=stream, width=width)) as display:
        for one in told:
            display.show(one)
    text = stream.getvalue()
    assert "\x1b" not in text and "\r" not in text
    return text.splitlines()


def test_a_file_gets_one_dated_line_each_and_no_escape_codes() -> None:
    lines = in_a_file(BEGUN, GOING, ENDED, SIMPLE)
    assert all(LINE.fullmatch(line) for line in lines), lines
    ended = "harm_score: failed: 8 made, 3 found, 1 failed; 12,000 rows in 2 min 00 s; 12 quarantined; 1,234 rows/s"
    assert [line.split(" ", 2)[2] for line in lines] == [
        "harm_score: 9 shards to do, 3 found finished",
        f"{ended}; 87% busy",
        "harm_score: done: 9 made, 3 found; 90 rows in 3 s",
    ]


def test_a_stage_with_nothing_to_do_is_one_line() -> None:
    found = replace(BEGUN, found=12)
    assert len(in_a_file(found, replace(found, status=Status.DONE))) == 1


def test_lines_come_at_rising_intervals_and_the_last_one_always() -> None:
    now = 0.0
    said: list[tuple[float, str]] = []
    lines = ProgressLines(lambda line, told: said.append((now, line)), lambda: now)
    lines.show(BEGUN)
    for second in range(4000):
        now = float(second)
        lines.show(GOING)
    lines.show(ENDED)
    times = [when for when, _ in said]
    assert times == [0.0, 5, 15, 35, 75, 155, 315, *range(615, 3999, 300), 3999]
    assert "7/12 shards; 3 min 12 s left; 1,234 rows/s; 1 failed; 12 quarantined; 87% busy" in said[1][1]
    assert said[-1][1].startswith("harm_score: failed: 8 made")


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"eta_seconds": None}, "1 min 01 s so far"),
        ({"eta_seconds": None, "workers": 0}, "starting workers"),
        ({"eta_seconds": 0.2}, "1 s left"),
        ({"eta_seconds": 7300.0}, "2 h 01 min left"),
    ],
)
def test_time_left_is_said_where_it_can_be(change: dict[str, Any], first: str) -> None:
    assert parts(replace(GOING, **change))[0] == first


def test_words_for_one_and_for_many() -> None:
    assert {"1 retry", "1 worker lost"} <= set(parts(replace(GOING, retries=1, lost=1)))
    assert {"2 retries", "2 workers lost"} <= set(parts(replace(GOING, retries=2, lost=2)))
    assert "345 tokens/s" in parts(replace(GOING, tokens_per_second=345.0))
    assert ending(replace(BEGUN, total=0, found=0, status=Status.DONE)) == "done: no shards"
    assert ending(replace(BEGUN, made=2, status=Status.BOUNDED)) == "bounded: 2 made, 3 found, 7 left"


def test_what_does_not_fit_is_left_out_whole() -> None:
    said = ["3 min left", "1,234 rows/s", "12 quarantined"]
    assert fitting(said, 24) == "3 min left, 1,234 rows/s"
    assert fitting(said, 23) == "3 min left"
    assert fitting(said, 3) == ""


def test_as_json_the_display_is_silent_and_the_log_has_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.FORMAT, "json")
    monkeypatch.setattr("flows.display.FIRST_SECONDS", 1e-9)
    with logs.on_stderr():
        assert in_a_file(BEGUN, GOING, ENDED) == []
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["event"] for one in events] == ["progress"]
    expected = {"stage": "harm_score", "shards": 12, "shards_made": 4, "shards_found": 3, "shards_failed": 1}
    expected |= {"rows": 12_345, "eta_seconds": 192, "rows_per_second": 1234, "busy_share": 0.875, "quarantined": 12}
    assert expected.items() <= events[0].items()


PROGRAM = """
import sys, time
from dataclasses import replace
from rich.console import Console
from flows.display import StageDisplay
from tasks import logs
from tests.flows.test_display import BEGUN, GOING, ENDED, SIMPLE
with logs.on_stderr(), StageDisplay(Console(stderr=True)) as display:
    display.show(BEGUN)
    display.show(GOING)
    logs.event("shard_failed", "part-3 failed", 40, stage="harm_score", shard="part-3")
    time.sleep(0.6)
    display.show(ENDED)
    display.show(replace(SIMPLE, stage="corpus-scatter-synthetic"))
"""


def on_a_terminal(columns: int, **environment: str) -> bytes:
    """Everything that the program writes to a terminal of that many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    kept |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **environment}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=theirs, stdout=theirs, stderr=theirs, env=kept)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert program.wait(60) == 0, written.decode()
    return written


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_every_stage_is_one_line_that_fits(columns: int) -> None:
    text = on_a_terminal(columns).decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    frames = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert all(len(line) <= columns for line in frames)
    assert any("7/12" in line and "3 min 12 s left" in line and "1,234 rows/s" in line for line in frames)
    ends = frames[-2:]
    assert ends[0].startswith("✗ harm_score ") and "11/12 12,000 rows in 2 min 00 s" in ends[0]
    assert ends[1].startswith("✓ corpus-scatter-synthetic ") and "12/12 90 rows in 3 s" in ends[1]
    assert ("1,234 rows/s" in ends[0]) == (columns == 120)
    # the log's line stands whole above the display, once
    assert sum("ERROR harm_score: part-3 failed" in line for line in frames) == 1


def test_a_terminal_without_unicode_gets_ascii() -> None:
    written = on_a_terminal(80, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert written.isascii() and b"x harm_score" in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", written)
