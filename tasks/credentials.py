"""Credentials of a run: in the environment of its processes while it lasts, and nowhere else.

Libraries read them from the environment (``AWS_SECRET_ACCESS_KEY``, ``HF_TOKEN``, ...), and so does winnow. What a run
was given by name is put there for the run alone. Workers on Ray get it as the argument of their set-up call.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final
from urllib.parse import quote, quote_plus

from operators.language.keys import KEY_VARIABLES

SECRET: Final = re.compile(
    r".*(SECRET|PASSW|TOKEN|CREDENTIAL|AUTH_STRING|CONNECTION_STRING|(API|ACCOUNT|ACCESS|PRIVATE|STORAGE|SAS)_?KEY)"
    r"(?!.*_(FILE|PATH|ID|URI|URL)$).*",
    re.IGNORECASE,
)
"""Names of environment variables whose values no line that winnow writes may hold."""
SHORTEST = 8
"""Characters of a value that is looked for in lines: a shorter one stands in ordinary words."""
HIDDEN = "***"


class CredentialsRefused(ValueError):
    """One line that says which credentials cannot be had, and the remedy. Holds none of them."""


class _Loan:
    """What the environment of this process holds for the runs in it, and what it held before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs = 0
        self.held: dict[str, str | None] = {}
        self.public: frozenset[str] = frozenset()
        self.before: dict[str, str | None] = {}

    def begin(self, wanted: dict[str, str | None], public: frozenset[str]) -> None:
        with self.lock:
            if self.runs and wanted != self.held:
                raise CredentialsRefused(
                    "a run with other credentials is at work in this process; wait for its end, or give this run a "
                    "process of its own"
                )
            if not self.runs:
                self.held, self.public = wanted, public
                self.before = {name: os.environ.get(name) for name in wanted}
                _apply(wanted)
            self.runs += 1

    def end(self) -> None:
        with self.lock:
            self.runs -= 1
            if not self.runs:
                _apply(self.before)
                self.held, self.public, self.before = {}, frozenset(), {}


_loan = _Loan()


@contextmanager
def given(environment: Mapping[str, str | None], public: frozenset[str] = frozenset()) -> Iterator[None]:
    """These variables hold inside, here and in the workers that are set up meanwhile; None: the variable is not set.

    ``public``: names of those that are no secret. A process has one environment, so runs that overlap in it must have
    been given the same. Raises CredentialsRefused where they were not.
    """
    _loan.begin(dict(environment), public)
    try:
        yield
    finally:
        _loan.end()


def for_workers() -> dict[str, str | None]:
    """What a worker's set-up call brings along: the key of a remote engine, and all that this run was given."""
    return {**{name: os.environ[name] for name in KEY_VARIABLES if name in os.environ}, **_loan.held}


def scrubbed(text: str) -> str:
    """Without the secrets that this process knows, however a library quoted them in what it said."""
    known: set[str | None] = {value for name, value in os.environ.items() if SECRET.fullmatch(name)}
    known |= {value for name, value in _loan.held.items() if name not in _loan.public}
    for form in {form for value in known if value and len(value) >= SHORTEST for form in forms(value)}:
        text = text.replace(form, HIDDEN)
    return text


def line_of(error: BaseException, most: int) -> str:
    """What an error says, on one line of at most ``most`` characters and without the secrets of this process.

    For whatever stays: a reason in quarantine, a record, a summary. Its type's name where it says nothing.
    """
    text = " ".join(scrubbed(str(error)).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


@contextmanager
def scrubbing() -> Iterator[None]:
    """An error that holds a secret leaves as a RuntimeError without it, because whoever gets it may write it down."""
    try:
        yield
    except Exception as error:
        if scrubbed(str(error)) == str(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {line_of(error, 2000)}") from None


@cache
def forms(secret: str) -> tuple[str, ...]:
    """The ways in which a secret may stand in a text, the longest first: as it is, quoted, escaped, encoded."""
    data = secret.encode("utf-8", "surrogateescape")
    found = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), json.dumps(secret)[1:-1]}
    found |= {repr(secret)[1:-1], data.hex(), *_in_base64(data)}
    return tuple(sorted(found, key=len, reverse=True))


def _in_base64(data: bytes) -> Iterator[str]:
    """Base64 of the bytes wherever they begin in a longer text, such as ``user:secret``, without shared ends."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + data).decode()
        inner = whole[(0, 2, 3)[before] : len(whole) - (0, 3, 2)[(before + len(data)) % 3]]
        yield from {inner, inner.replace("+", "-").replace("/", "_")}


def _apply(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if environment and (fsspec := sys.modules.get("fsspec")):
        # a file system that fsspec keeps for the next who asks was opened with the credentials of its time
        for kind in list(fsspec.registry.values()):
            kind.clear_instance_cache()
