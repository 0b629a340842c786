"""``curate_text`` as a job of a Ray cluster: this flow submits it, shows its progress, and passes a stop on to it."""

from __future__ import annotations

import logging
import os
from typing import Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.parameters import CurateText
from flows.signals import end_as_cancelled, listening, name_who_stopped
from flows.submit import RayJob
from tasks import logs
from tasks.job_server import JobServer
from tasks.observe import Observer, observer
from tasks.prefect_stage import run_artifacts, run_log
from tasks.preflight import Refused
from tasks.progress import Progress
from tasks.ray_job import Job, Limits, find_or_submit, follow
from tasks.run import RunIncomplete
from tasks.summary import RunSummary, Status


@flow(name="curate_text_on_ray", persist_result=False)
def curate_text_on_ray(parameters: CurateText, job: RayJob) -> RunSummary:
    """One curated corpus, made by a job on a Ray cluster. Ends as the job's run did; a cancelled one drains it."""
    ordered = order(parameters, job)
    with listening() as bounds, run_log():
        watching = observer()
        watching.listen()  # Prefect took SIGTERM as it entered the flow
        told = _Told(watching)

        def body() -> RunSummary:
            with JobServer(job.dashboard) as server:
                name, found = find_or_submit(server, ordered)
                watching.began = True
                logs.event(
                    "job", f"job {name} {'runs already and is followed' if found else 'was submitted'}", job=name
                )
                return follow(server, name, ordered.limits, lambda: bounds.asked, told.event)

        summary = task(name="ray_job", cache_policy=NO_CACHE, persist_result=False)(body)()
        name_who_stopped(bounds)
    watching.summary = summary
    run_artifacts(summary)
    if summary.status is not Status.DONE:
        end_as_cancelled(bounds, "; ".join(summary.messages))
        raise RunIncomplete(summary)
    return summary


def order(parameters: CurateText, job: RayJob) -> Job:
    """Raises Refused for what cannot mean the same on another machine."""
    for name, value in (("--input", parameters.input), ("--output", parameters.output)):
        if "://" not in value and not os.path.isabs(value):
            raise Refused(
                f"{name}: {value!r} is relative, and the job runs elsewhere; give it whole, or a bucket's URL"
            )
    sent = {
        **parameters.model_dump(mode="json", exclude_unset=True),
        "executor": "ray",
        "ray_address": "auto",  # the cluster that the job is on
    }
    return Job(
        output=parameters.output,
        parameters=sent,
        forward=job.forward,
        owner=str(flow_run.id or ""),
        limits=Limits(job.pending_seconds, job.drain_seconds, job.silence_seconds),
    )


class _Told:
    """Passes the job's events on: to whoever watches, to the log, and as progress artifacts of the stages' names."""

    def __init__(self, watching: Observer) -> None:
        self._watching = watching
        self._stages: dict[str, Progress] = {}
        self._artifacts: dict[str, UUID] = {}

    def event(self, one: dict[str, Any]) -> None:
        if one["event"] in ("stage_began", "progress", "stage_ended") and one.get("stage"):
            self._progress(one)
        if one["event"] != "progress":
            level = logging.getLevelNamesMapping().get(str(one.get("level", "info")).upper(), logging.INFO)
            kept = {
                name: one[name] for name in ("stage", "shard", "worker", "attempt", "error", "run_id") if name in one
            }
            logs.event(one["event"], str(one.get("message", "")), level, **kept)

    def _progress(self, one: dict[str, Any]) -> None:
        stage, before = one["stage"], self._stages.get(one["stage"])
        ended = one["event"] == "stage_ended"
        progress = Progress(
            stage=stage,
            total=one.get("shards", before.total if before else 0),
            found=one.get("shards_found", one.get("found", 0)),
            made=one.get("shards_made", 0),
            failed=one.get("shards_failed", 0),
            rows=one.get("rows", 0),
            tokens=one.get("tokens", 0),
            seconds=one.get("seconds", 0.0),
            eta_seconds=one.get("eta_seconds"),
            rows_per_second=one.get("rows_per_second"),
            tokens_per_second=one.get("tokens_per_second"),
            workers=one.get("workers", 0),
            status=Status(one["status"]) if ended else None,
        )
        self._stages[stage] = progress
        self._watching.hears(progress)
        share = 100.0 * progress.done / progress.total if progress.total else 100.0
        if self._watching.prefect_lost:
            return
        try:
            if stage in self._artifacts:
                update_progress_artifact(artifact_id=self._artifacts[stage], progress=share)
            else:
                key = f"{stage}-progress".replace("_", "-").lower()
                about = f"{stage}: shards finished"
                made = create_progress_artifact(progress=share, key=key, description=about)
                self._artifacts[stage] = cast(UUID, made)
        except Exception as error:  # whatever a client raises: the job matters more than its picture
            self._watching.prefect_lost = True
            logging.getLogger("winnow").warning("Prefect is left alone from here, the job goes on: %s", error)
