"""Credentials from a block on a real Prefect server: what a run gets, what is left of it, and what is refused."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from pydantic import SecretStr, ValidationError

from flows.cli import REFUSED
from flows.credentials import WinnowCredentials, credentials
from flows.options import BadParameters, validated
from flows.parameters import CurateText
from flows.start import start
from tasks.credentials import SECRET, given
from tasks.preflight import Refused
from tasks.store import Store
from tests.conftest import ACCESS
from tests.conftest import SECRET as S3_SECRET

pytestmark = pytest.mark.timeout(240)
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        WinnowCredentials.register_type_and_schema()
        yield


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without credentials of its own."""
    for name in [one for one in os.environ if one in AWS or SECRET.fullmatch(one)]:
        monkeypatch.delenv(name)


def saved(name: str, **held: Any) -> None:
    WinnowCredentials(**held).save(name, overwrite=True)


def test_every_field_becomes_the_variable_that_libraries_read(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of the machine, which would bring a region and an endpoint of its own")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://of-the-machine")
    before = dict(os.environ)
    saved(
        "whole",
        aws_access_key_id=" AKIA ",
        aws_secret_access_key=SecretStr("one\n"),
        aws_session_token=SecretStr("two"),
        aws_endpoint_url="http://host:8333",
        aws_region="eu-central-1",
        engine_api_key=SecretStr("three"),
        hf_token=SecretStr("four"),
        environment={"AZURE_STORAGE_ACCOUNT_KEY": "five"},
    )
    with credentials("whole"):
        changed = {name: os.environ.get(name) for name in {*before, *os.environ}}
    assert dict(os.environ) == before
    assert {name: value for name, value in changed.items() if before.get(name) != value} == {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "one",
        "AWS_SESSION_TOKEN": "two",
        "AWS_ENDPOINT_URL": "http://host:8333",
        "AWS_ENDPOINT_URL_S3": None,
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_PROFILE": None,
        "WINNOW_ENGINE_API_KEY": "three",
        "HF_TOKEN": "four",
        "AZURE_STORAGE_ACCOUNT_KEY": "five",
    }


def test_prefect_shows_the_form_and_hides_what_is_in_it() -> None:
    saved("shown", engine_api_key=SecretStr("sk-canary-hidden"), environment={"NAME": "canary-hidden-too"})
    with get_client(sync_client=True) as client:
        kind = client.request("GET", "/block_types/slug/winnow-credentials").json()
        schemas = client.request(
            "POST", "/block_schemas/filter", json={"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
        ).json()
        held = client.request("POST", "/block_documents/filter", json={"limit": 200}).text
    for field in schemas[0]["fields"]["properties"].values():
        assert field["title"] and len(field["description"]) > 10, field
    assert "shown" in held and "canary" not in held


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_from_bucket_to_bucket_needs_no_other_credentials(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{s3}/{tmp_path.name}-block"
    rows = [
        {"id": str(n), "text": f"The old lighthouse on the cape was built in 1871. It is number {n}."} for n in range(8)
    ]
    store = Store(f"{root}/in")
    store.fs.pipe_file(store.absolute("a.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    known = {"aws_access_key_id": ACCESS, "aws_endpoint_url": endpoint, "aws_region": "us-east-1"}
    saved("right", aws_secret_access_key=SecretStr(S3_SECRET), **known)
    saved("wrong", aws_secret_access_key=SecretStr("canary-wrong-secret"), **known)
    rest: dict[str, Any] = {"executor": "local", "rephrase": False, "keep": "lang = 'en'"}
    with monkeypatch.context() as patch:
        for name in [one for one in os.environ if one in AWS or SECRET.fullmatch(one)]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(tmp_path))
        parameters = CurateText(input=f"{root}/in", output=f"{root}/out", credentials="right", **rest)
        from flows.curate_text import curate_text

        summary = curate_text(parameters)
        with pytest.raises(Refused, match="access refused"):
            curate_text(parameters.model_copy(update={"credentials": "wrong"}))
        with pytest.raises(Refused, match="no credentials found"):
            curate_text(parameters.model_copy(update={"credentials": None}))
        assert not set(AWS) & set(os.environ)
    assert summary.parameters["credentials"] == "right"
    with given({"AWS_SECRET_ACCESS_KEY": S3_SECRET}):  # connections without it are kept else
        left = Store(f"{root}/out")
        assert len(left.entries()) > 8
        assert [one.path for one in left.entries() if S3_SECRET.encode() in left.read(one.path)] == []
        (corpus,) = [one.path for one in left.entries() if one.path.startswith("corpus/")]
        assert pq.read_metadata(io.BytesIO(left.read(corpus))).num_rows == 8


@pytest.mark.parametrize(
    ("held", "line"),
    [
        ({"aws_access_key_id": "AKIA"}, "holds half of an AWS key: aws_access_key_id and aws_secret_access_key go"),
        ({"aws_secret_access_key": "canary"}, "holds half of an AWS key"),
        ({"aws_session_token": "canary"}, "holds an aws_session_token without the key that it belongs to"),
        ({"aws_endpoint_url": "http://me:canary@host"}, "aws_endpoint_url holds a password"),
        ({"environment": {"LD_PRELOAD": "canary"}}, "environment: LD_PRELOAD is not for a block to set"),
        ({"environment": {"PATH": "canary"}}, "environment: PATH is not for a block to set"),
        ({"environment": {"RAY_AUTH_TOKEN": "canary"}}, "environment: RAY_AUTH_TOKEN is not for a block to set"),
        ({"environment": {"A B": "canary"}}, "environment: give names of variables and texts as their values"),
        ({"environment": {"A": 1}}, "environment: give names of variables and texts as their values"),
        ({"hf_token": ["canary"]}, "hf_token input should be a valid string"),
        ({}, "the block is empty; fill it in Prefect's UI"),
        ({"hf_token": "  "}, "the block is empty"),
    ],
)
def test_a_block_that_cannot_be_used_is_one_line_before_anything_starts(
    bare: None, held: dict[str, Any], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    document(held)
    before = dict(os.environ)
    with pytest.raises(Refused) as told, credentials("as-stored"):
        pytest.fail("it was used")
    assert line in str(told.value) and "credentials 'as-stored': " in str(told.value)
    assert "\n" not in str(told.value) and "canary" not in str(told.value)
    assert dict(os.environ) == before


def document(held: dict[str, Any]) -> None:
    """A block as the UI's form or another version may have stored it: the server checks next to nothing."""
    saved("as-stored", hf_token=SecretStr("x"))
    with get_client(sync_client=True) as client:
        stored = client.read_block_document_by_name("as-stored", "winnow-credentials")
        body = {"data": held, "merge_existing_data": False, "block_schema_id": str(stored.block_schema_id)}
        client.request("PATCH", f"/block_documents/{stored.id}", json=body).raise_for_status()


def test_a_missing_block_and_one_of_another_kind_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    Secret(value="canary").save("of-another-kind", overwrite=True)  # type: ignore[call-arg]
    given = {"input": str(tmp_path), "output": str(tmp_path / "out")}
    assert start(CurateText(**given, credentials="of-another-kind"), False) == REFUSED
    assert start(CurateText(**given, credentials="nowhere"), False) == REFUSED
    other, missing = capfd.readouterr().err.splitlines()
    assert other.startswith(
        "winnow: credentials 'of-another-kind': is a block of the kind Secret; make one of the kind"
    )
    assert missing.startswith("winnow: credentials 'nowhere': no such block at http://")
    assert "make it under Blocks in Prefect's UI" in missing
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pasted", ["wJalrXUtnFEMI/K7MDENG", "sk-canary-0123456789", "with blank", "A", ""])
def test_a_secret_in_place_of_a_name_is_refused_and_not_repeated(pasted: str) -> None:
    with pytest.raises(BadParameters) as told:
        validated(CurateText, {"input": "/in", "output": "/out", "credentials": pasted})
    assert "--credentials: is no name of a block" in str(told.value)
    assert len(pasted) < 2 or pasted not in str(told.value)


def test_the_block_itself_refuses_what_does_not_go_together() -> None:
    with pytest.raises(ValidationError, match="half of an AWS key"):
        WinnowCredentials(aws_access_key_id="AKIA")
