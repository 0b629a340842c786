"""Credentials from Prefect: a block that is made in the UI once, and that a run names.

``winnow serve`` puts the kind of block on its server; ``prefect block register -m flows.credentials`` on another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, ClassVar, Final

import httpx
import prefect.context
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.types import SecretDict
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator

from flows.parameters import no_password
from tasks.credentials import CredentialsRefused, given
from tasks.preflight import Refused

PUBLIC: Final = frozenset({"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"})
"""Variables that a block may set and that are no secret."""
NEVER: Final = re.compile(r"(PATH|HOME|SHELL|IFS|BASH_ENV|ENV)|(LD_|PYTHON|RAY_|PREFECT_|WINNOW_(?!ENGINE_API_KEY$)).*")
"""Further variables that a block may not set: they decide what code runs, or belong to what runs us."""


class WinnowCredentials(Block):
    """What a run may know of the stores, servers and hubs that it works with. Every field may stay empty.

    A field that is filled goes before the environment of the machine, for the run alone and for all of its workers.
    """

    _block_type_name: ClassVar[str] = "Winnow credentials"
    _block_type_slug: ClassVar[str] = "winnow-credentials"
    _description: ClassVar[str] = (
        "Credentials of a run of winnow. Name the block in the run's parameter `credentials`: parameters, records, "
        "logs and reports then hold its name and nothing of what is in it."
    )
    _documentation_url: ClassVar[Any] = None
    _code_example: ClassVar[str] = "winnow curate-text --credentials my-bucket --input ... --output ..."

    aws_access_key_id: str | None = Field(None, title="AWS access key id", description="Of the S3 store.")
    aws_secret_access_key: SecretStr | None = Field(
        None, title="AWS secret access key", description="Belongs to the access key id."
    )
    aws_session_token: SecretStr | None = Field(
        None, title="AWS session token", description="Of temporary credentials alone."
    )
    aws_endpoint_url: Annotated[str, AfterValidator(no_password)] | None = Field(
        None, title="AWS endpoint URL", description="Of a store that is not Amazon's: http://host:8333."
    )
    aws_region: str | None = Field(
        None, title="AWS region", description="Such as eu-central-1, where a store wants one."
    )
    engine_api_key: SecretStr | None = Field(
        None, title="Engine API key", description="Key of the servers that engine openai asks."
    )
    hf_token: SecretStr | None = Field(None, title="Hugging Face token", description="For models of the hub: hf:...")
    environment: SecretDict | None = Field(
        None,
        title="Further environment variables",
        description='For other stores and servers, as JSON: {"AZURE_STORAGE_ACCOUNT_KEY": "..."}.',
    )

    @model_validator(mode="after")
    def _whole(self) -> WinnowCredentials:
        pair = [_value(self.aws_access_key_id), _value(self.aws_secret_access_key)]
        if any(pair) and not all(pair):
            raise ValueError("holds half of an AWS key: aws_access_key_id and aws_secret_access_key go together")
        if _value(self.aws_session_token) and not all(pair):
            raise ValueError("holds an aws_session_token without the key that it belongs to")
        for name, value in (self.environment.get_secret_value() if self.environment else {}).items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or not isinstance(value, str) or "\0" in value:
                raise ValueError("environment: give names of variables and texts as their values")
            if NEVER.fullmatch(name):
                raise ValueError(f"environment: {name} is not for a block to set; set it where winnow is started")
        return self

    def variables(self) -> dict[str, str | None]:
        """Environment variables of this block. None: must not be set, because it would go before one that is here."""
        found: dict[str, str | None] = {}
        if self.environment:
            found |= self.environment.get_secret_value()
        if key := _value(self.aws_access_key_id):
            found |= dict.fromkeys(("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"))
            found |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": _value(self.aws_secret_access_key)}
        if token := _value(self.aws_session_token):
            found["AWS_SESSION_TOKEN"] = token
        if url := _value(self.aws_endpoint_url):
            found |= {"AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": None}
        if region := _value(self.aws_region):
            found |= {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
        if engine := _value(self.engine_api_key):
            found["WINNOW_ENGINE_API_KEY"] = engine
        if hub := _value(self.hf_token):
            found["HF_TOKEN"] = hub
        return found


@contextmanager
def credentials(name: str | None) -> Iterator[None]:
    """What the block of this name holds is in the environment inside; None: nothing changes.

    Raises Refused, in seconds and before anything changes, where there is no such block or it cannot be used.
    """
    with ExitStack() as loan:
        try:
            loan.enter_context(given(_variables(name) if name else {}, PUBLIC))
        except CredentialsRefused as error:
            raise Refused(str(error)) from error
        yield


def put_on_server() -> None:
    """Makes the kind of block known to the server of PREFECT_API_URL, with its form."""
    WinnowCredentials.register_type_and_schema()


def _variables(name: str) -> dict[str, str | None]:
    block = f"credentials {name!r}"
    prefect.context.refresh_global_settings_context()  # the URL may be newer than the import of Prefect
    try:
        with get_client(sync_client=True) as client:
            held = _document(client, name, block)
        variables = WinnowCredentials(**held).variables()
    except ValidationError as error:
        told = "; ".join(_told(one["loc"], one["msg"]) for one in error.errors(include_input=False))
        raise Refused(f"{block}: {told}; mend the block in Prefect's UI") from None  # its text holds the values
    except (httpx.HTTPError, PrefectException) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
            why = "refuses us; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY as it wants"
        else:
            why = f"does not answer ({' '.join(str(error).split()) or type(error).__name__})"
        raise Refused(f"{block}: Prefect's server {why}") from error
    if not any(variables.values()):
        raise Refused(f"{block}: the block is empty; fill it in Prefect's UI")
    return variables


def _document(client: SyncPrefectClient, name: str, block: str) -> dict[str, Any]:
    slug = WinnowCredentials.get_block_type_slug()
    try:
        return dict(client.read_block_document_by_name(name, slug, include_secrets=True).data)
    except ObjectNotFound as error:
        found = client.request("POST", "/block_documents/filter", json={"limit": 200}).json()
        kinds = [str(one["block_type"]["name"]) for one in found if one.get("name") == name]
        if kinds:
            why = f"is a block of the kind {kinds[0]}; make one of the kind {WinnowCredentials.get_block_type_name()}"
        else:
            why = (
                f"no such block at {client.api_url}; make it under Blocks in Prefect's UI, and set PREFECT_API_URL to "
                "that server where the run starts (on the cluster, for a submitted job)"
            )
        raise Refused(f"{block}: {why}") from error


def _told(where: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{where[0]} {message.lower()}" if where else message


def _value(held: str | SecretStr | None) -> str:
    """Without what a copied line brings along; empty where there is nothing."""
    return ((held.get_secret_value() if isinstance(held, SecretStr) else held) or "").strip()
