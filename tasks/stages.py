"""Makes stages out of operators and datasets: fingerprints, folders, workers. Nothing is run or loaded here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

from operators.base import Annotator, Operator, Resources, Rewriter, fingerprint
from operators.language.choose import OPENAI, identity, resolve_kind
from operators.language.engine import EngineSettings, Sampling
from operators.safety.tags import HarmTags
from tasks.aligned import Input
from tasks.annotate import AnnotateWorker
from tasks.build import Origin, ResolveWorker, ScatterWorker
from tasks.dataset import IDENTITY_VERSION, Dataset, Folder
from tasks.gather import GatherWorker
from tasks.ledger import Ledger
from tasks.models import resolve
from tasks.rewrite import Choice, RewriteWorker
from tasks.stage import Stage
from tasks.store import Store
from tasks.summary import Shape


def operator_identity(operator: Operator) -> dict[str, object]:
    """Configuration, version and the content hashes of its models."""
    models = {name: resolve(reference).sha256 for name, reference in operator.models().items()}
    return {**operator.identity(), "models": models}


def annotate(name: str, operator: Annotator, inputs: Sequence[Dataset], output: Store) -> Stage:
    """The stage ``<name>/<fingerprint>/`` that annotates the first dataset; further ones give it aligned columns."""
    stands_for, marks = operator_identity(operator), [one.mark for one in inputs]
    mark = fingerprint(IDENTITY_VERSION, Shape.ANNOTATE, stands_for, marks)
    folder = Folder(name, mark)
    worker = AnnotateWorker(operator, tuple(Input.of(one) for one in inputs), output, folder)
    told = {**stands_for, "references": operator.models(), "inputs": marks}
    kind, version = type(operator).__name__, operator.version
    return Stage(folder, Shape.ANNOTATE, kind, version, tuple(inputs), worker, operator.resources, told)


def rewrite(
    name: str,
    rewriter: Rewriter,
    engine: EngineSettings,
    sampling: Sampling,
    choice: Choice,
    inputs: Sequence[Dataset],
    output: Store,
) -> Stage:
    """The stage that rewrites chosen rows of the first dataset. The ledger is keyed by engine and sampling alone."""
    model = resolve(engine.model)
    engine = engine.model_copy(update={"kind": resolve_kind(engine)})
    runs = asdict(identity(engine, model.sha256, model.tokenizer_sha256))
    # the context's end cuts a completion short, so its length is part of what was asked for
    asked = {**sampling.model_dump(mode="json"), "max_model_len": engine.max_model_len}
    ledger_mark = fingerprint(IDENTITY_VERSION, "ledger", runs, asked)
    stands_for, marks = operator_identity(rewriter), [one.mark for one in inputs]
    made = [stands_for, ledger_mark, asdict(choice), marks]
    mark = fingerprint(IDENTITY_VERSION, Shape.REWRITE, made)
    folder = Folder(name, mark)
    contents = [shard.content for shard in inputs[0].shards]
    worker = RewriteWorker(
        rewriter=rewriter,
        engine=engine,
        sampling=sampling,
        choice=choice,
        inputs=tuple(Input.of(one) for one in inputs),
        output=output,
        folder=folder,
        ledger=Ledger(output, ledger_mark).with_orphans(contents),
    )
    # on CPUs one engine takes a whole machine: two that share its cores load the model twice and are no faster
    remote = engine.kind == OPENAI
    cores = engine.threads or (1 if engine.gpus > 0 or remote else len(os.sched_getaffinity(0)))
    resources = Resources(cpus=float(cores), gpus=engine.gpus)
    told = {
        **stands_for,
        "references": {**rewriter.models(), "engine": engine.model},
        "engine": runs,
        "sampling": asked,
        "choice": asdict(choice),
        "ledger": ledger_mark,
        "inputs": marks,
    }
    kind, version = type(rewriter).__name__, rewriter.version
    # a remote engine's concurrency and rates are those of one worker, which waits most of its time
    workers = 1 if remote else 0
    return Stage(folder, Shape.REWRITE, kind, version, tuple(inputs), worker, resources, told, workers)


BUILD_VERSION = "1"


def resolving(corpus: str, origin: Origin, inputs: Sequence[Dataset], seed: int, output: Store) -> Stage:
    """Counts the tokens of what one origin could give. Hidden: it is no dataset a person reads."""
    config = {"origin": origin.name, "routes": origin.routes, "seed": seed}
    folder = Folder(
        f"{corpus}-resolve-{origin.name}", fingerprint(IDENTITY_VERSION, BUILD_VERSION, config), hidden=True
    )
    worker = ResolveWorker(output, folder, inputs=tuple(Input.of(one) for one in inputs), origin=origin, seed=seed)
    return Stage(folder, Shape.BUILD, "Resolve", BUILD_VERSION, tuple(inputs), worker, identity=config)


def scattering(
    corpus: str, origin: Origin, inputs: Sequence[Dataset], tags: HarmTags, seed: int, output: Store
) -> Stage:
    """The rows of one origin that go into the corpus, shard by shard."""
    config = [asdict(origin), operator_like(tags), seed]
    folder = Folder(
        f"{corpus}-scatter-{origin.name}", fingerprint(IDENTITY_VERSION, BUILD_VERSION, config), hidden=True
    )
    worker = ScatterWorker(
        output, folder, inputs=tuple(Input.of(one) for one in inputs), origin=origin, tags=tags, seed=seed
    )
    told = {"origin": config[0], "tags": config[1], "seed": seed}
    return Stage(folder, Shape.BUILD, "Scatter", BUILD_VERSION, tuple(inputs), worker, identity=told)


def gathering(corpus: str, scattered: Sequence[tuple[Folder, Dataset]], partitions: Dataset, output: Store) -> Stage:
    """The corpus files. The fingerprint holds the dataset versions that they join."""
    joined = [[folder.fingerprint, dataset.version] for folder, dataset in scattered]
    folder = Folder(corpus, fingerprint(IDENTITY_VERSION, BUILD_VERSION, "gather", joined, len(partitions.shards)))
    worker = GatherWorker(
        output, folder, scattered=tuple(one for _, one in scattered), partitions=len(partitions.shards)
    )
    told = {"joined": joined, "partitions": len(partitions.shards)}
    return Stage(folder, Shape.BUILD, "Gather", BUILD_VERSION, (partitions,), worker, identity=told)


def operator_like(config: HarmTags) -> dict[str, object]:
    """What of the tags' configuration changes the corpus."""
    return {"version": config.version, **config.model_dump(mode="json")}
