"""One real Ray cluster for all modules of this folder: its start costs more than most of what is tried on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nodes import Nodes


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Nodes]:
    """A head without CPUs, with a job server, and node "a" of one CPU; started without any key of an engine."""
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    started = Nodes(jobs=True)
    try:
        started.add("a")
        yield started
    finally:
        started.end()
