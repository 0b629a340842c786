"""One `winnow serve` for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.serve.serving import Serving


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    one = Serving(tmp_path_factory.mktemp("serving"))
    try:
        yield one.ready()
    finally:
        one.close()
