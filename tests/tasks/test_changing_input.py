"""An input that changes under a run: a shard is replaced, taken away or damaged between the listing and a stage."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tasks.store import Store
from tasks.summary import RunSummary, Status
from tasks.verify import verify
from tests.bad_input import chain, packed, put, said
from tests.tasks.test_bad_input import corpus_of, files_of
from tests.toys import Judged, Length, Words

ROUTES = (("keep", "tokens >= 1"),)
MOVED = "part-1.parquet"
SLOW = pytest.mark.slow


class Meddling:
    """Does something to the input once: before the stage ``when`` gets to read its first shard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: str, deed: Callable[[], None]) -> None:
        from tasks import annotate

        real = annotate.read_unit
        done: list[bool] = []

        def read_unit(inputs: Any, unit: Any, columns: Any) -> Any:
            if not done and list(columns) == ["text"] and self.stage == when:
                done.append(True)
                deed()
            return real(inputs, unit, columns)

        self.stage = ""
        monkeypatch.setattr(annotate, "read_unit", read_unit)
        setups = {Length: "first", Judged: "judged", Words: "tokens"}
        for operator, name in setups.items():
            monkeypatch.setattr(operator, "setup", lambda one, models, name=name: setattr(self, "stage", name))


def texts(name: str) -> bytes:
    return packed({"text": said(name)})


def run(web: str, out: str) -> RunSummary:
    operators = {"first": Length(), "judged": Judged(), "tokens": Words()}
    return chain(web, out, annotators=operators, routes=ROUTES, workers=1)


@pytest.fixture
def web(root: str) -> str:
    """Three good shards."""
    for number in range(3):
        put(Store(f"{root}/web"), f"part-{number}.parquet", texts(f"first part {number}"))
    return f"{root}/web"


def held(out: str, summary: RunSummary) -> Counter[str]:
    return Counter(row["text"] for row in corpus_of(Store(out), summary))


@pytest.mark.parametrize("when", ["first", *(pytest.param(one, marks=SLOW) for one in ("judged", "tokens"))])
@pytest.mark.parametrize("what", ["replaced", "gone", "damaged"])
def test_a_shard_that_changes_during_the_run_fails_alone_and_the_next_run_takes_it_as_it_is(
    web: str, root: str, when: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = Store(web), f"{root}/out"

    def deed() -> None:
        if what == "gone":
            store.fs.rm_file(store.absolute(MOVED))
        else:
            put(store, MOVED, texts("second") if what == "replaced" else texts("second")[:-9])

    with monkeypatch.context() as patch:
        Meddling(patch, when, deed)
        summary = run(web, out)
    assert summary.status is Status.FAILED
    [failure] = next(one for one in summary.stages if one.name == when).failures
    assert failure.shard == MOVED and MOVED in failure.error and "\n" not in failure.error
    lines = {
        "gone": "is gone since the input was listed; run again",
        "replaced": "changed while it was read; run again",
    }
    assert lines.get(what, "cannot be read") in failure.error
    others = Counter([*said("first part 0"), *said("first part 2")])
    assert held(out, summary) == others, "what did not change goes into the corpus"
    again = run(web, out)
    if what == "damaged":
        assert again.status is Status.FAILED and held(out, again) == others
        put(store, MOVED, texts("second"))
        again = run(web, out)
    assert again.status is Status.DONE, again.messages
    assert held(out, again) == others + Counter(said("second") if what != "gone" else [])
    assert verify(Store(out)).ok
    fresh = run(web, f"{root}/fresh")
    corpus = next(one.folder for one in again.stages if one.name == "corpus")
    fresh_files = {path: digest for path, digest in files_of(Store(f"{root}/fresh")).items() if path.startswith(corpus)}
    assert fresh_files and fresh_files.items() <= files_of(Store(out)).items(), fresh.messages


def test_credentials_that_end_during_a_run_cost_what_is_left_and_new_ones_go_on(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of the second stage connect with what is no key any more."""
    import s3fs

    root = f"{s3}/{uuid.uuid4().hex[:12]}"
    for number in range(3):
        put(Store(f"{root}/web"), f"part-{number}.parquet", texts(f"first part {number}"))
    web, out = f"{root}/web", f"{root}/out"
    with monkeypatch.context() as patch:

        def deed() -> None:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
            s3fs.S3FileSystem.clear_instance_cache()

        Meddling(patch, "judged", deed)
        summary = run(web, out)
    s3fs.S3FileSystem.clear_instance_cache()
    first, judged, *_ = summary.stages
    assert summary.status is Status.FAILED and not first.failures and len(judged.failures) == 3
    for failure in judged.failures:
        assert "access refused" in failure.error and "check the credentials in the environment" in failure.error
        assert "\n" not in failure.error and "expired" not in failure.error
    again = run(web, out)
    assert again.status is Status.DONE and {one.name: one.shards_made for one in again.stages}["first"] == 0
    assert held(out, again) == Counter(text for number in range(3) for text in said(f"first part {number}"))
    assert verify(Store(out)).ok
