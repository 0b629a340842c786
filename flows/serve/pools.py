"""The work pools of `winnow serve`: where a run is carried out, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "deployments" / "prefect.yaml"  # beside flows/ in a checkout and in a wheel


@dataclass(frozen=True)
class Pool:
    """A process pool. ``limit``: runs at once, for the pool as it is made; ``gpus``: whether its runs may use GPUs."""

    name: str
    limit: int
    gpus: bool
    description: str


# One limit a pool, and not a global concurrency limit: a run that a pool holds back is a row in the database, while one
# that waits in a global limit is a process that has begun. And a place in a global limit, as in a deployment's own, is
# a lease of minutes: a run that a busy machine keeps from renewing it is stopped, or goes on and is not counted.
# The pool's limit alone is not enough either: the server counts runs that are running or pending, so a cancelled one
# that still drains would let the next one in beside it. The pool's one worker therefore has the same limit
# (flows/serve/worker.py), and a place there is free when the run's process is gone.
CPU = Pool("winnow-cpu", 2, False, "Runs on the cores of this machine; they see no GPU.")
GPU = Pool("winnow-gpu", 1, True, "Runs that use the GPUs of this machine, one at a time.")
POOLS = (CPU, GPU)


class BadDeployments(ValueError):
    """The file cannot be used: one line that says why."""
