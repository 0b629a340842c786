"""What a run that a Prefect worker started cannot do, told in one line before anything is read."""

from __future__ import annotations

import os

from flows.parameters import CurateText
from flows.signals import of_worker
from tasks.preflight import Refused

NO_GPU = "WINNOW_POOL_WITHOUT_GPU"
"""Name of the work pool, where the worker of `winnow serve` hides the GPUs from its runs."""


def check_placement(parameters: CurateText) -> None:
    """Raises Refused. A worker's runs have a working folder of their own that is deleted with them."""
    if not of_worker():
        return
    for name, value in (("input", parameters.input), ("output", parameters.output)):
        if "://" not in value and not os.path.isabs(os.path.expanduser(value)):
            raise Refused(
                f"{name}: {value!r} is relative, and a worker's run has no folder to start from; give it whole"
            )
    if parameters.engine_gpus and (pool := os.environ.get(NO_GPU)):
        raise Refused(
            f"engine_gpus: runs of the pool {pool} see no GPU; start ad-hoc-gpu, or give this deployment the pool "
            "winnow-gpu"
        )
