"""``winnow submit``: the run as a job of a Ray cluster, started and watched from here."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from flows.options import flags_of, validated
from flows.parameters import CurateText

PLACE = "Cluster"


class RayJob(BaseModel):
    """Where the job goes and how long is waited for what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dashboard: str = Field(description="URL of the cluster's dashboard, which takes jobs: http://head:8265.")
    forward: tuple[str, ...] = Field(
        (),
        description="Environment variables, by name, that the job gets from here; it has the cluster's own anyway. "
        "Ray shows their values to whoever may look at its jobs, and keeps them: keys belong in the cluster's own.",
    )
    pending_seconds: float = Field(900.0, gt=0, description="Longest wait for the job to begin.")
    drain_seconds: float = Field(180.0, ge=1, description="Time that a stopped job has to drain before it is killed.")
    silence_seconds: float = Field(120.0, gt=0, description="Longest time without an answer of the cluster.")


def submit_command(as_json: inspect.Parameter) -> Callable[..., None]:
    """The command: every flag of ``curate-text``, and where the job goes."""

    def run(parameters: CurateText, as_json: bool, dashboard: str, forward: list[str], drain_seconds: float) -> None:
        names = tuple(one for given in forward or () for one in given.split(","))
        job = validated(RayJob, {"dashboard": dashboard, "forward": names, "drain_seconds": drain_seconds})
        raise typer.Exit(submit(parameters, job, as_json))

    return flags_of(
        CurateText,
        run,
        [
            _flag("dashboard", str, inspect.Parameter.empty, "--dashboard", metavar="URL"),
            _flag("forward", list[str] | None, None, "--forward", metavar="NAME,..."),
            _flag("drain_seconds", float, 180.0, "--drain-seconds", min=1, metavar="NUMBER"),
            as_json,
        ],
    )


def submit(parameters: CurateText, job: RayJob, as_json: bool) -> int:
    """Returns the exit code of the run that the job did."""
    from flows.start import PREFECT_ENVIRONMENT, finish, refuse, say

    for name, value in PREFECT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import httpx
    from prefect.exceptions import PrefectException
    from rich.console import Console

    from flows.cli import OPEN, REFUSED
    from flows.display import StageDisplay
    from flows.prefect_server import prefect_api
    from flows.ray_job import curate_text_on_ray, order
    from flows.signals import drained_by_signals
    from tasks import logs
    from tasks.job_server import JobFailed, JobRefused, JobServer
    from tasks.observe import Observer, watched_by
    from tasks.preflight import Refused
    from tasks.ray_job import known_jobs
    from tasks.run import RunIncomplete
    from tasks.stage import Bounds

    try:
        order(parameters, job).environment()
        with JobServer(job.dashboard) as server:
            known_jobs(server)
    except (Refused, JobRefused) as error:
        return refuse(str(error))
    bounds = Bounds()
    watcher = Observer(bounds=bounds)
    asked = "winnow: the job drains; what is done is kept (once more to leave it to that)"
    try:
        with (
            logs.on_stderr(),
            drained_by_signals(bounds, asked) as listen,
            prefect_api(),
            StageDisplay(Console(stderr=True)) as display,
        ):
            watcher.on_progress, watcher.listen = display.show, listen
            with watched_by(watcher):
                return finish(curate_text_on_ray(parameters, job), as_json)
    except RunIncomplete as error:
        return finish(error.summary, as_json)
    except (Refused, JobRefused) as error:
        return refuse(str(error))
    except JobFailed as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say(f"{bounds.reason or 'stopped'}: the job is left alone; the same command finds it while it runs")
        return OPEN
    except (RuntimeError, ValueError, OSError, httpx.HTTPError, PrefectException) as error:
        say(" ".join(str(error).split()) or type(error).__name__)
        return OPEN if watcher.began else REFUSED


def _flag(name: str, kind: Any, default: Any, flag: str, **options: Any) -> inspect.Parameter:
    description = RayJob.model_fields[name].description
    option = typer.Option(flag, help=description, rich_help_panel=PLACE, **options)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
