"""What happens in a run, as events of standard logging: text for people, one JSON object a line for machines.

Every event goes to the logger ``winnow`` with its parts as attributes of the record (``event``, ``run_id``, ``stage``,
``shard``, ``worker``, ``attempt``, ``error``, ...), so whoever uses winnow as a library configures it as any other
logger. At most a few events a shard, never one a row. Credentials are taken out before any handler sees a record.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from contextvars import ContextVar
from datetime import UTC, datetime
from traceback import format_exception
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.orjson import OrjsonFormatter

from tasks.credentials import scrubbed
from tasks.report.facts import without_secrets

FORMAT, LEVEL = "WINNOW_LOG_FORMAT", "WINNOW_LOG_LEVEL"
TEXT, JSON = "text", "json"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
SHOWN = ("stage_ended", "stage_in_trouble", "run_ended")
"""Events that a person at the command line reads in the display and the summary anyway."""
LOG = logging.getLogger("winnow")
_ABOUT: ContextVar[dict[str, Any] | None] = ContextVar("winnow_about", default=None)
_BEARER = re.compile(r"(?i)\b(bearer\s+|sk-|hf_)[A-Za-z0-9._~+/=-]{8,}")
_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:token|key|secret|signature|credential|passw)[^=&\s]*=)[^&\s]+")


def event(what: str, message: str, level: int = logging.INFO, **parts: Any) -> None:
    """Logs ``message``, one line for a person, as the event ``what``; parts that are None are left out."""
    told = {**(_ABOUT.get() or {}), **parts}
    extra = {"event": what, **{name: part for name, part in told.items() if part is not None}}
    LOG.log(level, message, extra=extra, stacklevel=2)


@contextmanager
def about(**parts: Any) -> Iterator[None]:
    """Every event inside carries these parts too."""
    token = _ABOUT.set({**(_ABOUT.get() or {}), **parts})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def run_is(run_id: str | None) -> None:
    """From here on events belong to this run; None: to none. A run is no ``with`` block, so this is no context."""
    _ABOUT.set(None if run_id is None else {"run_id": run_id})


def masked(text: str) -> str:
    """Without the secrets of this process, passwords in URLs, signed query parts and bearer tokens."""
    text = str(without_secrets(scrubbed(text)))
    return _BEARER.sub(r"\1***", _QUERY.sub(r"\1***", text))


class _Masking(logging.Filter):
    """On the logger and not on a handler: it holds for handlers that others add as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = masked(record.getMessage()), ()
        for name, part in vars(record).items():
            if name in ("msg", "name"):
                continue
            if isinstance(part, str):
                setattr(record, name, masked(part))
            elif isinstance(part, list | tuple) and name != "exc_info":
                setattr(record, name, [masked(one) if isinstance(one, str) else one for one in part])
        if record.exc_info and isinstance(record.exc_info, tuple):
            record.exc_text, record.exc_info = masked("".join(format_exception(*record.exc_info)).rstrip()), None
        return True


MASKING = _Masking()
LOG.addFilter(MASKING)


class _Wrapped(io.TextIOBase):
    """Stands for standard error while that holds JSON: what libraries print there becomes events, line by line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                event("stderr", line.rstrip(), logging.WARNING)
        return len(text)


class _Stderr(logging.StreamHandler[TextIO]):
    """Standard error as it is when a line is written: a live display puts itself in its place for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.stderr, _Wrapped):
            self.stream = sys.stderr
        super().emit(record)


class _Text(logging.Formatter):
    """``2026-11-24 12:36:47 WARNING stage: message``."""

    def format(self, record: logging.LogRecord) -> str:
        stage, said = getattr(record, "stage", ""), super().format(record)
        said = said if record.name == LOG.name else masked(f"{record.name}: {said}")
        head = self.formatTime(record, "%Y-%m-%d %H:%M:%S") + f" {record.levelname} "
        return head + (f"{stage}: {said}" if stage and not said.startswith(f"{stage}:") else said)


class _Lines(OrjsonFormatter):
    """``{"time": ..., "level": ..., "event": ..., "message": ..., ...}``; time in UTC, milliseconds."""

    def __init__(self) -> None:
        super().__init__(reserved_attrs=[*RESERVED_ATTRS, "taskName", "event"], json_default=str)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["time"] = moment.replace("+00:00", "Z")
        log_data["level"] = record.levelname.lower()
        log_data["event"] = getattr(record, "event", "log")
        if record.name != LOG.name:
            log_data["logger"] = record.name
        super().add_fields(log_data, record, message_dict)
        log_data.update({name: masked(part) for name, part in log_data.items() if isinstance(part, str)})


def as_json() -> bool:
    return os.environ.get(FORMAT, TEXT).strip().lower() == JSON


def say(what: str, level: int = logging.ERROR, event: str = "said") -> None:
    """One line on standard error outside of a run, in the format of the log."""
    stream = sys.__stderr__ if isinstance(sys.stderr, _Wrapped) else sys.stderr
    if stream is not None:  # a process may have none
        stream.write(spoken(what, level, event))
        stream.flush()


def spoken(what: str, level: int = logging.ERROR, event: str = "said") -> str:
    what = masked(what)
    if not as_json():
        return f"winnow: {what}\n"
    record = logging.LogRecord(LOG.name, level, "", 0, what, (), None)
    vars(record).update({**(_ABOUT.get() or {}), "event": event})
    return _Lines().format(record) + "\n"


@contextmanager
def on_stderr() -> Iterator[None]:
    """Writes the log to standard error as the environment asks: text from warnings on, JSON from ``info`` on.

    What other libraries log is written in the same format, from warnings on. Everything is put back at the end.
    """
    if any(isinstance(one, _Stderr) for one in LOG.handlers):
        yield
        return
    asked = os.environ.get(LEVEL, "").strip().upper()
    told = asked if asked in LEVELS else "INFO" if as_json() else "WARNING"
    ours, others = _handler(told), _handler("WARNING")
    if not asked and not as_json():
        ours.addFilter(lambda record: getattr(record, "event", "") not in SHOWN)
    # the log of a Prefect run repeats our own events
    others.addFilter(lambda record: not record.name.startswith(("prefect.flow_runs", "prefect.task_runs")))
    root, triton = logging.getLogger(), logging.getLogger("torch._library.triton")
    before = (LOG.level, LOG.propagate, root.handlers[:], root.level, triton.level)
    LOG.setLevel(min(logging.INFO, ours.level))  # Prefect's run log takes what standard error leaves out
    LOG.propagate = False
    LOG.addHandler(ours)
    root.handlers[:] = [others]
    root.setLevel(logging.WARNING)
    triton.setLevel(logging.ERROR)  # it says on every machine without a GPU that it is not there
    try:
        with _json_alone() if as_json() else nullcontext():
            yield
    finally:
        LOG.removeHandler(ours)
        LOG.level, LOG.propagate, root.handlers[:] = before[:3]
        root.setLevel(before[3])
        triton.setLevel(before[4])


@contextmanager
def _json_alone() -> Iterator[None]:
    logging.captureWarnings(True)
    try:
        with redirect_stderr(_Wrapped()):
            yield
    finally:
        logging.captureWarnings(False)


def _handler(level: str) -> _Stderr:
    handler = _Stderr()
    handler.setFormatter(_Lines() if as_json() else _Text())
    handler.setLevel(level)
    return handler
