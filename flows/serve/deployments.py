"""Work pools, and the deployments of deployments/prefect.yaml, put on a Prefect server.

What a person can edit in the UI stays as it was left: parameters, schedules, pool, job variables and limits are
written once, when a deployment or pool is new. What belongs to the code (entry point, form, description) follows the
code at every start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
import prefect.context
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.states import Cancelled, Crashed
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows import credentials
from flows.serve.pools import POOLS, SHIPPED, BadDeployments, Pool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timetable(_Strict):
    """One schedule of a deployment: a cron line or an interval in seconds."""

    slug: str
    cron: str | None = None
    interval: float | None = Field(None, gt=0)
    timezone: str = "UTC"
    active: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> Timetable:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("give a schedule either a cron or an interval")
        return self

    def prefect(self) -> DeploymentScheduleCreate:
        schedule: CronSchedule | IntervalSchedule
        if self.cron is not None:
            schedule = CronSchedule(cron=self.cron, timezone=self.timezone)
        else:
            schedule = IntervalSchedule(interval=timedelta(seconds=self.interval or 0), timezone=self.timezone)
        return DeploymentScheduleCreate(schedule=schedule, active=self.active, slug=self.slug)


class PoolChoice(_Strict):
    """Where a deployment's runs are carried out."""

    name: str
    job_variables: dict[str, Any] = {}


class Deployment(_Strict):
    """One entry of the file, with the keys of Prefect's own format that winnow uses."""

    name: str
    entrypoint: str
    description: str
    tags: list[str] = []
    parameters: dict[str, Any] = {}
    schedules: list[Timetable] = []
    work_pool: PoolChoice


class DeploymentFile(_Strict):
    """The file: Prefect's prefect.yaml."""

    name: Literal["winnow"] = "winnow"
    pull: list[dict[str, Any]] = []
    deployments: list[Deployment]


@dataclass
class Registered:
    """What stands on the server now. ``trouble``: one line for each deployment that could not be brought up to date."""

    names: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)


def read(file: Path = SHIPPED) -> DeploymentFile:
    """Raises BadDeployments."""
    try:
        return DeploymentFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadDeployments(f"{file}: cannot be read ({error.strerror}); install winnow again") from error
    except yaml.YAMLError as error:
        raise BadDeployments(f"{file}: not valid YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors())
        raise BadDeployments(f"{file}: {where}") from error


def create_pools(client: SyncPrefectClient, pools: tuple[Pool, ...] = POOLS) -> None:
    for pool in pools:
        try:
            client.read_work_pool(pool.name)
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(
                    name=pool.name,
                    type="process",
                    description=pool.description,
                    concurrency_limit=pool.limit,
                    base_job_template=ProcessWorker.get_default_base_job_template(),
                )
            )


def register(client: SyncPrefectClient, held: DeploymentFile) -> Registered:
    """Creates what is missing and brings up to date what is there."""
    done = Registered()
    for one in held.deployments:
        flow: Flow[..., Any] = load_flow_from_entrypoint(one.entrypoint, use_placeholder_flow=False)
        ours: dict[str, Any] = {
            "version": version("winnow-corpus"),
            "description": one.description,
            "tags": one.tags,
            "entrypoint": one.entrypoint,
            "pull_steps": None,  # the flow is imported; what `prefect deploy` needs would be noise in each run's log
            "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
            "enforce_parameter_schema": True,
        }
        done.names.append(f"{flow.name}/{one.name}")
        try:
            there = client.read_deployment_by_name(f"{flow.name}/{one.name}")
        except ObjectNotFound:
            client.create_deployment(
                flow_id=client.create_flow_from_name(flow.name),
                name=one.name,
                parameters=one.parameters,
                schedules=[schedule.prefect() for schedule in one.schedules],
                work_pool_name=one.work_pool.name,
                job_variables=one.work_pool.job_variables,
                **ours,
            )
            continue
        try:
            client.update_deployment(there.id, DeploymentUpdate(**ours))
        except PrefectHTTPStatusError as error:
            why = " ".join(str(error.response.json().get("detail", error)).split())
            done.trouble.append(f"{done.names[-1]}: {why}; edit its parameters in the UI, or delete it and start again")
    return done


def put_on_server(held: DeploymentFile) -> tuple[str, list[str]]:
    """Everything on the server of PREFECT_API_URL. Returns a table for a person, and one line for each trouble.

    Raises BadDeployments where the server does not take it.
    """
    prefect.context.refresh_global_settings_context()  # the URL may be newer than the import of Prefect
    try:
        with get_client(sync_client=True) as client:
            create_pools(client)
            done = register(client, held)
            credentials.put_on_server()
            past = [*close_lost_runs(client), *drop_missed_runs(client)]
            return table(client, done.names), [*done.trouble, *past]
    except (httpx.HTTPError, PrefectException) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadDeployments(
            f"Prefect's server did not take the deployments ({why}); start winnow serve again"
        ) from error


def close_lost_runs(client: SyncPrefectClient) -> list[str]:
    """Ends runs that say they run though their worker is gone: they would hold their pool's places for ever."""
    lines = []
    for run in _runs(client, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING):
        cancelling = run.state is not None and run.state.is_cancelling()
        why = "winnow serve ended before this run did; what is done is kept, start it again to go on"
        client.set_flow_run_state(run.id, (Cancelled if cancelling else Crashed)(message=why), force=True)
        lines.append(f"run {run.name} did not outlive the last winnow serve; start it again to go on")
    return lines


def drop_missed_runs(client: SyncPrefectClient) -> list[str]:
    """Cancels all but the last of the runs that a schedule wanted while nobody served: one does what all would do."""
    missed: dict[UUID, list[FlowRun]] = {}
    now = datetime.now(UTC)
    for run in _runs(client, StateType.SCHEDULED):
        due = run.next_scheduled_start_time
        if run.auto_scheduled and run.deployment_id and due is not None and due < now:
            missed.setdefault(run.deployment_id, []).append(run)
    dropped = [run for runs in missed.values() for run in sorted(runs, key=_due)[:-1]]
    for run in dropped:
        why = "missed while winnow serve was not running; the last one that was missed runs instead"
        client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
    return [f"{len(dropped)} scheduled runs were missed and are left out; the last one runs now"] if dropped else []


def _due(run: FlowRun) -> datetime:
    return run.next_scheduled_start_time or datetime.max.replace(tzinfo=UTC)


def _runs(client: SyncPrefectClient, *states: StateType) -> list[FlowRun]:
    """All runs of our pools in one of the states; Prefect gives 200 at a time, the earliest first."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name for pool in POOLS])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            offset=len(found),
        )
        if not page:
            return found
        found += page


def table(client: SyncPrefectClient, names: list[str]) -> str:
    """Deployments with their pools and schedules, as the server holds them."""
    rows = [("deployment", "pool", "runs")]
    for name in names:
        one = client.read_deployment_by_name(name)
        rows.append(
            (name, one.work_pool_name or "-", "; ".join(_when(one, held) for held in one.schedules) or "by hand")
        )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows)


def _when(deployment: DeploymentResponse, held: DeploymentSchedule) -> str:
    schedule = held.schedule
    when = schedule.cron if isinstance(schedule, CronSchedule) else str(getattr(schedule, "interval", "by a rule"))
    when += f" {getattr(schedule, 'timezone', None) or 'UTC'}"
    given = deployment.parameters.get("parameters") or {}
    if held.active and not deployment.paused:
        return when
    if not (given.get("input") and given.get("output")):
        return f"paused ({when}): set input and output"
    return f"paused ({when})"
