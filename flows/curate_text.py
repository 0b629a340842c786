"""``curate_text``: documents -> language and harm score -> routes -> rephrase -> tagged and mixed corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
from prefect import flow
from pydantic import ValidationError

from flows.credentials import credentials
from flows.engine import engine_settings, longest_request
from flows.parameters import CurateText
from flows.placement import check_placement
from flows.signals import end_as_cancelled, listening, name_who_stopped
from operators.base import Annotator, Operator
from operators.language.choose import choose, resolve_dtype
from operators.language.engine import EngineSettings, Sampling
from operators.language.identify import LanguageId
from operators.language.tokens import TokenCount
from operators.rephrase.styles import Style
from operators.rephrase.wrap import WrapRephrase
from operators.route import Route
from operators.safety.harm_score import HarmScore
from operators.safety.tags import HarmTags
from tasks import preflight, stages
from tasks.build import CORPUS, RESERVED
from tasks.corpus import CorpusPlan, build_corpus
from tasks.credentials import scrubbing
from tasks.dataset import Dataset
from tasks.executor import Policy
from tasks.prefect_stage import run_artifacts, run_log, stage_task
from tasks.rewrite import Choice
from tasks.run import Run, RunIncomplete
from tasks.source import CANONICAL
from tasks.stage import Execution, Executor, Stage
from tasks.store import Store
from tasks.summary import RunSummary

KEEP, TAG = "keep", "tag"


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs and that could be refused, checked and made before any model loads."""

    source: Dataset
    chosen: list[str]
    output: Store
    language: LanguageId
    harm: HarmScore
    tokens: TokenCount
    route: Route
    wrap: WrapRephrase
    engine: EngineSettings
    sampling: Sampling
    tags: HarmTags
    execution: Execution


def prepare(parameters: CurateText) -> Plan:
    """Raises preflight.Refused, in seconds, for anything that could not work."""
    try:
        return _prepare(parameters)
    except preflight.Refused:
        raise
    except (
        ValidationError
    ) as error:  # an operator's own check of its configuration; pydantic tells it over several lines
        told = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
        raise preflight.Refused(told) from error
    except (ValueError, OSError) as error:
        raise preflight.Refused(" ".join(str(error).split())) from error


def _prepare(parameters: CurateText) -> Plan:
    route = Route(routes=((KEEP, parameters.keep), (TAG, parameters.tag)))
    chosen: list[str] = []
    plan = Plan(
        source=preflight.source(
            parameters.input, parameters.columns, parameters.limit, parameters.selection, chosen.append
        ),
        chosen=chosen,
        output=Store(parameters.output),
        language=LanguageId(),
        harm=HarmScore(),
        tokens=TokenCount(tokenizer=parameters.model),
        route=route,
        wrap=WrapRephrase(
            styles=tuple(Style(one) for one in parameters.styles),
            seed=parameters.seed,
            piece_tokens=parameters.piece_tokens,
            max_new_tokens=parameters.max_new_tokens,
            tokenizer=parameters.model,
            sampled=parameters.temperature > 0,
        ),
        engine=engine_settings(parameters),
        sampling=Sampling(max_tokens=parameters.max_new_tokens, temperature=parameters.temperature),
        tags=HarmTags(p=parameters.tag_probability, seed=parameters.seed),
        execution=Execution(
            executor=Executor(parameters.executor),
            workers=parameters.workers,
            policy=Policy(retries=parameters.retries, stall_seconds=parameters.stall_seconds),
        ),
    )
    preflight.output(parameters.output, plan.source, parameters.input, parameters.single_writer)
    if parameters.rephrase:
        choose(plan.engine)  # raises where the engine asked for cannot run
        plan = replace(plan, engine=preflight.fleet(plan.engine, longest_request(parameters), chosen.append))
    reserved = {*CORPUS.names, *RESERVED} - set(CANONICAL)
    if taken := sorted(reserved & parameters.columns.keys()):
        raise preflight.Refused(f"--columns: winnow makes a column {taken[0]!r} itself; carry yours under another name")
    annotators: list[Annotator] = [plan.language, plan.harm, plan.tokens]
    operators: list[Operator] = [*annotators, *([plan.wrap] if parameters.rephrase else [])]
    references = [one for operator in operators for one in operator.models().values()]
    preflight.models([*references, *([parameters.model] if parameters.rephrase else [])])
    # types too: a condition that is no condition is said now and not after the models have run
    plan.route.check(pa.schema([field for one in annotators for field in one.adds]))
    return plan


def engine_notes(settings: EngineSettings) -> dict[str, str | int]:
    """Which engine rephrases, and why that one."""
    choice = choose(settings)
    notes: dict[str, str | int] = {"engine": f"{choice.kind} ({choice.reason})", "model": settings.model}
    if settings.urls:
        notes |= {"served as": settings.served_model, "servers": len(settings.urls)}
    return {**notes, "dtype": resolve_dtype(settings)}


@flow(name="curate_text", persist_result=False)
def curate_text(parameters: CurateText) -> RunSummary:
    """One curated corpus from one source. Raises RunIncomplete unless every account closes."""
    check_placement(parameters)
    with credentials(parameters.credentials), scrubbing():
        return _curate_text(parameters)


def _curate_text(parameters: CurateText) -> RunSummary:
    plan = prepare(parameters)
    # one observer for the whole run: what bounds it is what its stages listen to, whoever started the flow
    with listening() as bounds, run_log():
        run = Run("curate_text", parameters.model_dump(mode="json"), parameters.input, plan.output)
        run.bound(parameters.until, parameters.max_tokens)
        for line in plan.chosen:
            run.say(line)
        try:
            with run.executing(plan.execution, parameters.ray_address):
                _stages(parameters, plan, run)
            name_who_stopped(bounds)
            summary = run.finish(parameters.max_quarantine)
        except BaseException as error:
            run.crashed(error)
            raise
    run_artifacts(summary)
    if not run.ended_well:
        end_as_cancelled(bounds, "; ".join(summary.messages))
        raise RunIncomplete(summary)
    return summary


def _stages(parameters: CurateText, plan: Plan, run: Run) -> None:
    output, execution = plan.output, plan.execution

    def do(stage: Stage) -> Dataset:
        return run.add(stage_task(stage, output, execution))

    language = do(stages.annotate("language", plan.language, [plan.source], output))
    source = plan.source.with_contents(run.contents("language"))
    harm = do(stages.annotate("harm_score", plan.harm, [source], output))
    tokens = do(stages.annotate("tokens", plan.tokens, [source], output))
    routes = do(stages.annotate("route", plan.route, [language, harm, tokens], output))
    real = (source, [tokens, routes, language, harm])
    synthetic: tuple[Dataset, list[Dataset]] | None = None
    if parameters.rephrase:
        choice = Choice("route", (KEEP,), parameters.rephrase_share, parameters.seed)
        rewritten = do(
            stages.rewrite("rephrase", plan.wrap, plan.engine, plan.sampling, choice, [source, routes], output)
        )
        run.note("rephrase", engine_notes(plan.engine))
        counted = do(stages.annotate("rephrase_tokens", plan.tokens, [rewritten], output))
        synthetic = (rewritten, [counted])
    corpus_plan = CorpusPlan(
        real=real,
        synthetic=synthetic,
        keep_routes=(KEEP, TAG),
        tag_routes=(TAG,),
        tags=plan.tags,
        synthetic_share=parameters.synthetic_share if synthetic else None,
        shard_tokens=parameters.shard_tokens,
        seed=parameters.seed,
    )
    corpus = build_corpus(corpus_plan, output, do, run) if parameters.build else None
    if not parameters.build:
        run.say("no corpus was built, as asked (build is off); a run with build on finds these stages finished")
    run.describe(source, language, harm, routes, synthetic[0] if synthetic else None, corpus, parameters.seed)
