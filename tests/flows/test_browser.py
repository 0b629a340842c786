"""`winnow serve` as a person meets it: real server, real workers, and Prefect's own pages in a real Chromium.

Screens are kept in pytest's temporary folder (``--basetemp DIR`` to choose one); look at them after a change.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.demo_source import documents
from tests.conftest import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.timeout(400)

START_SECONDS, RUN_SECONDS, PAGE_SECONDS = 180.0, 240.0, 60.0
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
DOCUMENTS = 24


def missing(what: str, remedy: str) -> None:
    """No browser, no test: loud on a person's machine, a failure where everything has to be there."""
    line = f"{what} is missing, so nothing here was tested: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(line)
    pytest.skip(line)


@pytest.fixture(scope="module")
def chromium() -> str:
    if importlib.util.find_spec("playwright") is None:
        missing("playwright", "make install-dev")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        missing("Chromium", "apt-get install chromium")
    return str(found)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of real documents."""
    folder = tmp_path_factory.mktemp("web")
    rows = [row for row in documents() if len(row["text"]) < 1500][:DOCUMENTS]
    for day in range(2):
        part = rows[day * DOCUMENTS // 2 : (day + 1) * DOCUMENTS // 2]
        pq.write_table(pa.Table.from_pylist(part), folder / f"2026-03-1{day}.parquet")
    return folder


@pytest.fixture(scope="module")
def served(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of Prefect's UI, under `winnow serve`, which Ctrl-C ends."""
    folder = tmp_path_factory.mktemp("serve")
    port = free_port()
    environment = {**os.environ, "PREFECT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "TZ": "UTC"}
    environment.pop("PREFECT_API_URL", None)
    log = folder / "serve.log"
    with log.open("wb") as to:
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(port)]
        server = subprocess.Popen(command, stdout=to, stderr=to, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Start a run" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0, log.read_text()[-3000:]
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)  # its own session: it and its children, nobody else's
            server.wait(10)


class Screen:
    """One page, and what a person does there. Every wait has a limit."""

    def __init__(self, page: Page, url: str, shots: Path) -> None:
        self.page, self.url, self._shots = page, url, shots

    def shot(self, name: str, page: Page | None = None) -> None:
        self.page.wait_for_timeout(400)  # pages fade in
        (page or self.page).screenshot(path=self._shots / f"{name}.png", full_page=page is not None)

    def custom_run(self, deployment: str) -> None:
        self.page.goto(f"{self.url}/deployments")
        self.page.get_by_role("link", name=deployment, exact=True).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        self.field("Input").wait_for()

    def field(self, title: str) -> Locator:
        """By the end of its title, "Data · Input (Optional)"; the last match is the field, those before hold it."""
        label = self.page.locator(".schema-form-property__label")
        label = label.filter(has_text=re.compile(rf"· {re.escape(title)}( \(Optional\))?$"))
        return self.page.locator(".schema-form-property").filter(has=label).last

    def fill(self, title: str, value: str) -> None:
        self.field(title).locator("input, textarea").first.fill(value)

    def choose(self, title: str, value: str) -> None:
        self.field(title).locator("button.p-select-button__control").focus()
        self.page.keyboard.press("ArrowDown")
        self.page.locator(".p-select-option").filter(has_text=re.compile(f"^{value}$")).first.click()

    def date(self, title: str, day: str) -> None:
        """Through the calendar that opens below the field."""
        self.field(title).locator(".p-date-button__control").focus()
        self.page.keyboard.press("Enter")
        self.page.locator("input[type=date]").fill(day)
        self.page.get_by_role("button", name="Apply").click()
        self.field(title).get_by_text("Select date").wait_for(state="hidden")

    def switch(self, title: str) -> None:
        self.field(title).get_by_role("switch").click()

    def name_run(self, name: str) -> None:
        self.page.locator("label, .p-label").filter(has_text="Run Name").locator("input").first.fill(name)

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def submitted(self, name: str) -> None:
        """Submits and opens the page of the new run. Once more where the server was too busy to take the form."""
        form = self.page.url.partition("?")[0]
        deadline = time.monotonic() + START_SECONDS
        while not (run := self.run_of(name)) and time.monotonic() < deadline:
            if self.page.url.partition("?")[0] == form:
                self.submit()
            again = time.monotonic() + PAGE_SECONDS
            while not (run := self.run_of(name)) and time.monotonic() < again:
                self.page.wait_for_timeout(300)
        assert run, f"{name} was not started: {self.page.url}"
        self.page.goto(f"{self.url}/runs/flow-run/{run}")

    def run_of(self, name: str) -> str | None:
        found = self.page.request.post(
            f"{self.url}/api/flow_runs/filter", data={"flow_runs": {"name": {"any_": [name]}}}
        )
        runs = found.json() if found.ok else []
        return str(runs[0]["id"]) if runs else None

    def holds(self, title: str, value: str) -> None:
        """Waits until the field holds this."""
        from playwright.sync_api import expect

        expect(self.field(title).locator("input, textarea").first).to_have_value(value, timeout=PAGE_SECONDS * 1000)

    def table(self, *heads: str) -> None:
        """Waits until the page shows a table of these columns."""
        from playwright.sync_api import expect

        expect(self.page.locator("thead th")).to_have_text(list(heads), ignore_case=True, timeout=PAGE_SECONDS * 1000)

    def says(self, title: str, words: str) -> None:
        """Waits until the form says this at the field: its help, or what is wrong."""
        self.field(title).get_by_text(words).wait_for()

    def state(self, name: str, seconds: float = RUN_SECONDS) -> None:
        """Waits, without a reload, until the run's page shows this state at its top."""
        badge = self.page.locator(".state-badge").filter(has_text=re.compile(f"^{name}$")).first
        badge.wait_for(timeout=seconds * 1000)

    def artifact(self, key: str) -> None:
        """From the run's page to one of its artifacts."""
        self.page.get_by_text("Artifacts", exact=True).last.click()
        self.page.locator(".artifact-card").filter(has_text=key).first.click()
        self.page.get_by_text("Show raw data").wait_for()


@pytest.fixture(scope="module")
def screen(chromium: str, served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    from playwright.sync_api import sync_playwright

    shots = tmp_path_factory.mktemp("screens")
    beyond: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, OFFLINE])
        context = browser.new_context(viewport={"width": 1300, "height": 1000}, timezone_id="UTC", locale="en-US")
        context.set_default_timeout(PAGE_SECONDS * 1000)
        here = ("http://127.0.0.1:", "ws://127.0.0.1:", "blob:http://127.0.0.1:", "data:")
        context.on("request", lambda request: None if request.url.startswith(here) else beyond.append(request.url))
        yield Screen(context.new_page(), served, shots)
        browser.close()
    assert beyond == [], "the pages must work without any network"


def test_the_form_shows_help_and_refuses_wrong_values_at_their_fields(screen: Screen) -> None:
    screen.custom_run("ad-hoc")
    screen.says("Keep", "SQL over lang")
    screen.holds("Keep", "lang = 'en' AND harm_score = 0")
    screen.holds("Limit", "")
    screen.shot("form")
    screen.fill("Seed", "-1")
    screen.fill("Max quarantine", "2")
    screen.choose("Engine", "openai")
    screen.submit()
    screen.says("Input", "'input' is a required property")
    screen.says("Seed", "-1 is less than the minimum of 0")
    screen.says("Max quarantine", "2 is greater than the maximum of 1")
    screen.says("Engine URL", "'engine_url' is a required property")
    screen.field("Input").scroll_into_view_if_needed()
    screen.shot("form-refuses")
    assert screen.page.url.partition("?")[0].endswith("/run"), "the form was left"


def test_a_run_is_started_watched_and_read_in_the_browser(screen: Screen, web: Path, tmp_path: Path) -> None:
    output = tmp_path / "my corpus"
    screen.custom_run("ad-hoc")
    screen.name_run("first corpus")
    screen.fill("Input", str(web))
    screen.fill("Output", str(output))
    screen.fill("Max quarantine", "0.1")
    screen.switch("Rephrase")
    screen.choose("Executor", "local")
    screen.submitted("first corpus")
    screen.state("Running", 120)
    screen.page.get_by_text("harm_score", exact=False).first.wait_for(state="attached", timeout=120_000)
    screen.shot("running")
    screen.state("Completed")
    screen.page.wait_for_timeout(500)  # the timeline draws its last bars
    screen.shot("completed")
    run = screen.page.url

    summary = json.loads(next((output / ".winnow" / "runs").glob("*.json")).read_text())
    corpus = sum(part.num_rows for part in map(pq.read_metadata, output.glob("corpus/*/*.parquet")))
    words = f"{DOCUMENTS} documents became a corpus of {corpus} rows."
    assert summary["status"] == "done" and 0 < corpus <= DOCUMENTS
    assert summary["parameters"]["max_quarantine"] == 0.1 and summary["parameters"]["executor"] == "local"

    screen.artifact("harm-score-progress")
    screen.page.get_by_text("100%").first.wait_for()
    screen.page.goto(run)
    screen.artifact("curate-text-accounts")
    screen.table("stage", "kind", "what", "count", "share")
    screen.page.locator("tbody tr").first.wait_for()
    rows = screen.page.locator("tbody tr").all_inner_texts()
    assert any(re.split(r"\s*\t\s*", row)[:4] == ["language", "rows in", "ok", str(DOCUMENTS)] for row in rows), rows
    screen.shot("accounts")

    screen.page.goto(run)
    screen.artifact("curate-text-summary")
    screen.page.get_by_text(words).first.wait_for()
    screen.table("stage", "rows in", "rows out", "quarantined", "shards", "time")
    screen.shot("summary")

    screen.page.goto(run)
    screen.artifact("curate-text-report")
    with screen.page.context.expect_page() as opened:
        screen.page.get_by_role("link", name="Open the report").click()
    report = opened.value
    report.get_by_role("heading", name=words).wait_for()
    assert summary["run_id"] in report.url
    screen.shot("report", report)
    report.set_viewport_size({"width": 390, "height": 800})
    assert report.evaluate("document.documentElement.scrollWidth") <= 390, "the report scrolls sideways on a phone"
    report.close()


def test_a_backfill_that_cannot_start_says_why_in_one_line(screen: Screen, web: Path, tmp_path: Path) -> None:
    screen.custom_run("backfill")
    screen.name_run("nothing there")
    screen.fill("Input", str(web))
    screen.fill("Output", str(tmp_path / "out"))
    screen.date("First date", "2026-03-14")
    screen.shot("backfill")
    screen.submitted("nothing there")
    screen.state("Failed")
    screen.page.get_by_text("Details", exact=True).first.click()
    screen.page.get_by_text("See More").first.click()  # of the state's message
    screen.page.get_by_text(
        "no shard is of 2026-03-14 or later; its shards are from 2026-03-10 to 2026-03-11"
    ).first.wait_for()
    screen.shot("failed")
