"""Credentials that hold for one run: there inside, gone afterwards, never mixed, and taken out of what is said."""

from __future__ import annotations

import base64
import json
import os
import threading
from urllib.parse import quote

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from tasks.credentials import SECRET as SECRET_NAME
from tasks.credentials import CredentialsRefused, for_workers, forms, given, line_of, scrubbed, scrubbing
from tasks.logs import masked
from tasks.store import Store, StoreError
from tests.conftest import SECRET as S3_SECRET

SECRET = "cAnary/0c4e8d+2b7a61=x"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if SECRET_NAME.fullmatch(one)]:
        monkeypatch.delenv(name)


def test_they_hold_inside_and_what_was_there_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://mine")
    before = dict(os.environ)
    wanted = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_PROFILE": None, "AWS_ENDPOINT_URL": "http://theirs"}
    with given(wanted):
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET and os.environ["AWS_ENDPOINT_URL"] == "http://theirs"
        assert "AWS_PROFILE" not in os.environ
        assert for_workers() == wanted
    assert dict(os.environ) == before and for_workers() == {}
    with pytest.raises(ZeroDivisionError), given(wanted):
        raise ZeroDivisionError
    assert dict(os.environ) == before and for_workers() == {}


def test_the_key_of_the_environment_goes_to_workers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of this machine, and workers have their own")
    assert for_workers() == {"OPENAI_API_KEY": SECRET}


@pytest.mark.parametrize("other", [{"HF_TOKEN": "another-token"}, {}])
def test_two_runs_in_one_process_do_not_mix(other: dict[str, str]) -> None:
    inside, end = threading.Event(), threading.Event()

    def first() -> None:
        with given({"HF_TOKEN": SECRET}):
            inside.set()
            end.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    try:
        refused = pytest.raises(CredentialsRefused, match="a run with other credentials is at work in this process")
        with refused, given(other):
            pytest.fail("it ran with the first run's token")
        with given({"HF_TOKEN": SECRET}):
            assert os.environ["HF_TOKEN"] == SECRET
        assert os.environ["HF_TOKEN"] == SECRET, "the first run lost its token"
    finally:
        end.set()
        thread.join(10)
    assert "HF_TOKEN" not in os.environ
    with given(other):
        assert os.environ.get("HF_TOKEN") == other.get("HF_TOKEN")


def test_a_connection_does_not_outlive_its_credentials(s3: str) -> None:
    """fsspec hands out again what it opened before, with the credentials of then."""
    place = f"{s3}/no/such/place"
    with given({"AWS_SECRET_ACCESS_KEY": S3_SECRET}):
        assert Store(place).entries() == []
    with given({"AWS_SECRET_ACCESS_KEY": "wrong-" + SECRET}), pytest.raises(StoreError, match="access refused"):
        Store(place).entries()
    with given({"AWS_SECRET_ACCESS_KEY": S3_SECRET}):
        assert Store(place).entries() == []


def test_a_line_loses_a_known_secret_in_any_dress() -> None:
    user = base64.b64encode(f"me:{SECRET}".encode()).decode()
    said = [SECRET, quote(SECRET, safe=""), json.dumps(SECRET), SECRET.encode().hex(), user, f"Basic {user}"]
    with given({"SOME_NAME": SECRET, "PLACE": "http://theirs/with/a/path"}, frozenset({"PLACE"})):
        for line in said:
            assert not any(form in masked(f"it said {line}.") for form in forms(SECRET)), line
        assert masked("at http://theirs/with/a/path") == "at http://theirs/with/a/path"
    assert scrubbed(SECRET) == SECRET, "nobody knows it any more"


@drawn(st.text(min_size=8, max_size=20), st.binary(max_size=4), st.binary(max_size=4))
def test_every_dress_is_found(secret: str, before: bytes, after: bytes) -> None:
    data = before + secret.encode() + after
    whole = (base64.b64encode(data), base64.urlsafe_b64encode(data), data.hex().encode())
    for text in (*(one.decode() for one in whole), json.dumps(f"a{secret}b"), repr(f"a{secret}b")):
        assert any(form in text for form in forms(secret)), text


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "WINNOW_ENGINE_API_KEY", "HF_TOKEN"),
        *("RAY_AUTH_TOKEN", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "PGPASSWORD"),
        *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_SAS_TOKEN", "POSTGRES_PASSWORD", "some_apikey"),
    ],
)
def test_the_usual_names_of_secrets_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert scrubbed(f"it said {SECRET}") == "it said ***"


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_WEB_IDENTITY_TOKEN_FILE", "RAY_AUTH_TOKEN_PATH", "HOME"]
)
def test_what_is_no_secret_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/some/long/place")
    assert scrubbed("at /some/long/place") == "at /some/long/place"


def test_an_error_loses_what_it_may_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    error = ValueError(f"the header\nAuthorization: Bearer {SECRET} is refused")
    assert line_of(error, 400) == "the header Authorization: Bearer *** is refused"
    assert line_of(error, 20) == "the header Author..." and line_of(KeyError(), 20) == "KeyError"
    with pytest.raises(RuntimeError) as told, scrubbing():
        raise error
    assert str(told.value) == "ValueError: the header Authorization: Bearer *** is refused"
    assert told.value.__cause__ is None and told.value.__suppress_context__
    with pytest.raises(KeyError), scrubbing():
        raise KeyError("nothing secret")
