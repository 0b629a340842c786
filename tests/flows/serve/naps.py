"""A flow that does nothing for a while and notes when: small enough to look at pools and schedules with."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run


@flow(name="nap", persist_result=False)
def nap(folder: str, seconds: float = 0.0, drain_seconds: float = 0.0) -> None:
    """Writes ``began-NAME`` and ``ended-NAME``; after a SIGTERM it goes on for ``drain_seconds``, as a drain does."""
    ending = threading.Event()

    def handle(number: int, frame: Any) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, handle)
    (Path(folder) / f"began-{flow_run.get_id()}").write_text(str(time.time()))
    if ending.wait(seconds):
        time.sleep(drain_seconds)
    (Path(folder) / f"ended-{flow_run.get_id()}").write_text(str(time.time()))
