"""Builds the corpus from its origins: resolve the cuts, scatter the shards, gather the files, write the card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from operators.mixing import keep_rates, threshold
from operators.safety.tags import HarmTags
from tasks.build import CORPUS, Origin, merged
from tasks.card import card
from tasks.commit import create
from tasks.dataset import HIDDEN, Dataset
from tasks.gather import partition_dataset
from tasks.run import Run
from tasks.runs import CARDS
from tasks.stage import Stage
from tasks.stages import gathering, resolving, scattering
from tasks.store import Store

REAL, SYNTHETIC = "real", "synthetic"
CORPUS_STAGE = "corpus"
HIDDEN_STAGES = (f"{CORPUS_STAGE}-resolve", f"{CORPUS_STAGE}-scatter")


@dataclass(frozen=True)
class CorpusPlan:
    """``real`` and ``synthetic``: a base dataset and its aligned annotations, the first of which counts its tokens."""

    real: tuple[Dataset, list[Dataset]]
    synthetic: tuple[Dataset, list[Dataset]] | None
    keep_routes: tuple[str, ...]
    tag_routes: tuple[str, ...]
    tags: HarmTags
    synthetic_share: float | None
    shard_tokens: int
    seed: int


def build_corpus(plan: CorpusPlan, output: Store, do: Callable[[Stage], Dataset], run: Run) -> Dataset | None:
    """Runs the three steps through ``do`` and returns the corpus. Its folder and card are known to ``run``.

    None where nothing was kept, or where a step failed on a shard: a corpus with a hole in it is not gathered.
    """
    columns = plan.real[0].columns
    carried = () if columns is None else tuple(one for one in columns.mapping if one[0] in columns.carried)
    lacks_real = ("parent_id", "style")
    lacks_synthetic = ("url", "date", "lang", "harm_score", "route", *(name for name, _ in carried))
    origins = {REAL: Origin(REAL, plan.keep_routes, plan.tag_routes, lacks_real, carried)}
    sources = {REAL: plan.real}
    if plan.synthetic is not None:
        origins[SYNTHETIC] = Origin(SYNTHETIC, None, (), lacks_synthetic, carried)
        sources[SYNTHETIC] = plan.synthetic

    histograms, totals = {}, {}
    for name, origin in origins.items():
        # the real side is counted from its annotations alone: the source is not read for it
        counted = do(resolving(CORPUS_STAGE, origin, _counted_from(sources[name], origin), plan.seed, output))
        histograms[name] = merged(output, counted).column("tokens").to_numpy()
        totals[name] = int(histograms[name].sum())
    shares = {} if plan.synthetic_share is None else {REAL: 1 - plan.synthetic_share, SYNTHETIC: plan.synthetic_share}
    if shares and not all(totals.values()):
        lacking = next(name for name, total in totals.items() if not total)
        run.say(f"no {lacking} text to mix: the corpus takes everything else, not the share asked for")
        shares = {}
    rates = keep_rates(totals, shares) if shares else dict.fromkeys(totals, 1.0)
    cuts = {name: threshold(histograms[name], rate) for name, rate in rates.items()}
    kept = sum(total * rates[name] for name, total in totals.items())
    partitions = max(1, round(kept / plan.shard_tokens))

    scattered = []
    for name, origin in origins.items():
        base, annotations = sources[name]
        cut = Origin(origin.name, origin.routes, origin.tag_routes, origin.lacks, origin.carried, cuts[name])
        stage = scattering(CORPUS_STAGE, cut, [base, *annotations], plan.tags, plan.seed, output)
        scattered.append((stage.folder, do(stage)))
    if run.broken(folder.stage for folder, _ in scattered):
        return None
    if not any(run.accounts(folder.stage).rows_out for folder, _ in scattered):
        run.say("nothing was kept: --keep and --tag match no document", leaves_open=True)
        return None
    parts = partition_dataset(output, [dataset for _, dataset in scattered], partitions)
    stage = gathering(CORPUS_STAGE, scattered, parts, output)
    corpus = do(stage)

    if run.broken([CORPUS_STAGE]):
        return None
    tokens = {name: run.accounts(CORPUS_STAGE).tokens.get(name, 0) for name in origins}
    _check(run, [folder.stage for folder, _ in scattered])
    total = sum(tokens.values())
    mix: dict[str, float] = {f"{name}_tokens": float(count) for name, count in tokens.items()}
    mix["realised_synthetic_share"] = tokens.get(SYNTHETIC, 0) / total if total else 0.0
    if plan.synthetic_share is not None:
        mix["requested_synthetic_share"] = plan.synthetic_share
    run.mixed(mix)
    resolved = {"cuts": cuts, "rates": rates, "tokens_available": totals, "partitions": partitions}
    run.summary.stages[-1].notes.update({f"cut {name}": round(cut, 6) for name, cut in cuts.items()})
    mark = stage.folder.fingerprint
    create(output, f"{HIDDEN}/resolved/{CORPUS_STAGE}/{mark}.json", orjson.dumps(resolved, option=orjson.OPT_SORT_KEYS))
    create(output, f"{CARDS}/{mark}.md", card(run.summary, stage.folder.data, CORPUS.names).encode())
    return corpus


def _counted_from(source: tuple[Dataset, list[Dataset]], origin: Origin) -> list[Dataset]:
    _, annotations = source
    return annotations[:2] if origin.routes is not None else annotations[:1]


def _check(run: Run, scatters: list[str]) -> None:
    """The accounts close over all three steps: what was scattered is what was gathered, row for row."""
    sent = sum(run.accounts(name).rows_out for name in scatters)
    came = run.accounts(CORPUS_STAGE).rows_out
    if sent != came:
        run.say(f"corpus: {sent} rows were scattered and {came} gathered; do not use it", leaves_open=True)
