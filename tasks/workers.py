"""What the scheduling loop knows of workers: their contract, where they run, how long to wait, what they spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life. ``steps`` only ever grows while there is progress; the rest is for display and budgets.

    ``spent``: what was sent and paid for elsewhere so far, by name.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    setup_seconds: float = 0.0
    spent: Mapping[str, int] = field(default_factory=dict)


class Worker(Protocol):
    """What a stage does to one unit. Pickled to where it runs, set up there once, then called unit by unit."""

    concurrency: int

    def setup(self) -> None: ...

    def process(self, unit: Any) -> Any:
        """The unit's record, or None where it was drained before the unit was finished."""

    def beat(self) -> Beat: ...

    def drain(self) -> None:
        """Stop soon: keep what is done, give up what is not."""

    def close(self) -> None: ...


class Handle(Protocol):
    """A worker that was started somewhere."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Starts a call and returns its future."""

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine that drives the run is to go away. ``by``: monotonic seconds, infinite where nobody said."""

    why: str
    by: float


class Pool(Protocol):
    """Where workers run. ``wait`` returns the futures that are done; ``result`` gives a value or raises WorkerDied."""

    name: str

    def start(self, worker: Worker) -> Handle: ...

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]: ...

    def result(self, future: Any) -> Any: ...

    def capacity(self, cpus: float, gpus: float) -> int:
        """How many workers of this size fit."""

    def leaving(self, handles: Sequence[Handle]) -> list[tuple[Handle, float]]:
        """Of these workers, those whose machine was announced to go away (a spot notice, a drained node), and when that
        is: monotonic seconds, infinite where nobody said."""

    def ending(self) -> Notice | None:
        """Why the whole run has to drain: the machine that drives it, or one that all need, is to go away."""

    def close(self) -> None:
        """Nothing will be waited for any more."""


class WorkerDied(RuntimeError):
    """The process behind a worker is gone."""


class SetupFailed(RuntimeError):
    """No worker is left and none can be set up: nothing can be done, and the run stops here."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of every wait. ``retries``: attempts after the first. Times in seconds."""

    workers: int = 1
    retries: int = 2
    stall_seconds: float = 600.0
    setup_seconds: float = 900.0
    drain_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a unit ended: a value, an error after ``attempts``, or neither: given up because the run was stopped."""

    unit: Any
    value: Any = None
    error: str = ""
    attempts: int = 1


@dataclass
class Effort:
    """What the workers spent, summed over all that ever ran; who is at it now, and with which units since when.

    ``steps``: signs of progress. ``retries``: attempts after a unit's first. ``lost``: workers that died or were
    killed. ``held``: (unit, monotonic seconds at which its attempt began). ``most``: units that may be held at once.
    ``ending``: why the run has to drain, where that came from the machines and not from the caller.
    """

    workers: int = 0
    tokens: int = 0
    rows: int = 0
    steps: int = 0
    busy_seconds: float = 0.0
    ready_seconds: float = 0.0
    setup_seconds: float = 0.0
    alive: int = 0
    retries: int = 0
    lost: int = 0
    draining: bool = False
    ending: str = ""
    most: int = 0
    held: tuple[tuple[Any, float], ...] = ()
    spent: Counter[str] = field(default_factory=Counter)

    @property
    def busy_share(self) -> float:
        return min(1.0, self.busy_seconds / self.ready_seconds) if self.ready_seconds > 0 else 0.0


Stop = Callable[[Effort], bool]
