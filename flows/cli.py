"""The command line. Exit codes: 0 all accounts closed, 1 finished with something open, 2 refused before starting."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from flows.options import BadParameters, flags_of
from flows.parameters import CurateText, no_password
from flows.submit import submit_command

if TYPE_CHECKING:
    from tasks.summary import RunSummary

CLOSED, OPEN, REFUSED = 0, 1, 2
INTERRUPTED, UNREAD = 130, 141
"""As a shell names the ends by SIGINT and SIGPIPE: Ctrl-C, and `winnow status URL | head -1`."""
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's; typer brings its own copy of click and does not name it

app = typer.Typer(
    help="Curates the data that language models are pretrained on: kill-proof, exactly once, on object storage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]


def _place(url: str) -> str:
    try:
        return no_password(url)
    except ValueError as error:
        raise BadParameters(f"the URL {error}") from error


Version = Annotated[
    str,
    typer.Argument(metavar="URL", callback=_place, help="Output root; one of its runs: URL@RUN_ID, URL@previous."),
]
LOG_FORMATS, LOG_LEVELS = ("text", "json"), ("debug", "info", "warning", "error")
Root = Annotated[str, typer.Argument(metavar="URL", callback=_place, help="Output root of a run.")]


@app.callback()
def watching(
    log_format: Annotated[
        str | None,
        typer.Option(
            envvar="WINNOW_LOG_FORMAT",
            metavar="text|json",
            help="What standard error holds: lines for people, or one JSON object a line.  [default: text]",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            envvar="WINNOW_LOG_LEVEL",
            metavar="|".join(LOG_LEVELS),
            help="Least level that is written.  [default: warning; as JSON info]",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="WINNOW_METRICS_PORT",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve a run's Prometheus metrics on this port of WINNOW_METRICS_ADDRESS.  "
            "[default: off; address 127.0.0.1]",
        ),
    ] = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            envvar="WINNOW_METRICS_FILE",
            metavar="FILE",
            help="Write them to this .prom file too, for a textfile collector.",
        ),
    ] = None,
) -> None:
    # in the environment, so that the processes which a worker starts for its runs do the same
    for name, given, known in (("FORMAT", log_format, LOG_FORMATS), ("LEVEL", log_level, LOG_LEVELS)):
        if given is None:
            continue
        if given.strip().lower() not in known:
            os.environ.pop(f"WINNOW_LOG_{name}", None)
            raise BadParameters(f"--log-{name.lower()}: give one of {', '.join(known)} (given {given!r})")
        os.environ[f"WINNOW_LOG_{name}"] = given.strip().lower()
    if metrics_port is not None:
        os.environ["WINNOW_METRICS_PORT"] = str(metrics_port)
    if metrics_file is not None:
        os.environ["WINNOW_METRICS_FILE"] = str(metrics_file)


def _curate_text(parameters: CurateText, as_json: bool) -> None:
    from flows.start import start

    raise typer.Exit(start(parameters, as_json))


_json_flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
FLOWS = {"curate-text": "Documents in, curated corpus out: language, harm score, routes, rephrasing, tags, mix."}
"""Commands that start a flow of the same name (curate_text), with what each is for."""

app.command("curate-text", help=FLOWS["curate-text"], short_help="Documents in, curated corpus out.")(
    flags_of(CurateText, _curate_text, [_json_flag])
)
app.command(
    "submit",
    help="The same as a job of a Ray cluster: submitted, watched and stopped from here.",
    short_help="The same as a job of a Ray cluster.",
)(submit_command(_json_flag))


@app.command(short_help="The whole job on real text, on this machine, in minutes.")
def demo(
    output: Annotated[Path, typer.Option(help="Folder for input, stages and corpus; new or empty.")] = Path(
        "demo-corpus"
    ),
    as_json: AsJson = False,
) -> None:
    """The whole job on real text from installed packages, on this machine, in a few minutes."""
    from flows.start import demo as run_demo

    raise typer.Exit(run_demo(output, as_json))


@app.command(short_help="The flows that can be started, and their deployments.")
def flows(as_json: AsJson = False) -> None:
    """The flows that can be started, with what each is for and its deployments under `winnow serve`."""
    from flows.inspection import show_flows

    raise typer.Exit(show_flows(FLOWS, as_json))


@app.command(short_help="How the last run ended, and what stands finished.")
def status(url: Root, as_json: AsJson = False) -> None:
    """How the last run ended, and what stands finished in every stage."""
    from flows.inspection import show_status

    raise typer.Exit(show_status(url, as_json))


@app.command(short_help="Derives accounts and checksums again from the data.")
def verify(url: Root, as_json: AsJson = False) -> None:
    """Derives accounts and checksums again from the data and says what is wrong."""
    from flows.inspection import show_verification

    raise typer.Exit(show_verification(url, as_json))


@app.command(short_help="Where a row came from, and what was made of it.")
def lineage(
    url: Version,
    row: Annotated[str, typer.Argument(metavar="ID", help="Id of a source document, a rewritten row or a corpus row.")],
    shard: Annotated[str | None, typer.Option(help="Name of its source shard, which makes the search short.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every row of the id, even where reading them is long.")] = (
        False
    ),
    as_json: AsJson = False,
) -> None:
    """Where a row came from, what was decided of it and why, and what was made of it."""
    from flows.tracing import show_lineage

    raise typer.Exit(show_lineage(url, row, shard, as_json, everything))


@app.command(short_help="What differs between two versions.")
def diff(
    a: Annotated[
        str,
        typer.Argument(metavar="A", callback=_place, help="Output root; one of its runs: URL@RUN_ID, URL@previous."),
    ],
    b: Annotated[str, typer.Argument(metavar="B", callback=_place, help="The other one.")],
    as_json: AsJson = False,
) -> None:
    """What differs between two versions: parameters, models, accounts, rows in and out. Exit code 1 where they do."""
    from flows.tracing import show_diff

    raise typer.Exit(show_diff(a, b, as_json))


@app.command(short_help="Does quarantined rows and failed shards again.")
def retry(url: Root, as_json: AsJson = False) -> None:
    """Does the quarantined rows and the failed shards of the last run again, and nothing else."""
    from flows.upkeep import retry as run_retry

    raise typer.Exit(run_retry(url, as_json))


@app.command(short_help="Lists what no kept version needs; deletes it if asked.")
def gc(
    url: Root,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it nothing is touched.")] = False,
    keep: Annotated[int, typer.Option(min=1, help="Versions of the corpus to keep, the latest first.")] = 1,
    ledgers: Annotated[
        bool, typer.Option("--ledgers", help="Also what only another model or sampling could use; it was paid for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lists stages, shards, ledgers and leftovers that no kept version needs, with their sizes."""
    from flows.upkeep import collect_garbage

    raise typer.Exit(collect_garbage(url, delete, keep, ledgers, as_json))


@app.command(short_help="Prefect's UI, deployments and workers on this machine.")
def serve(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Prefect's UI and API on loopback; reports take the next.")
    ] = 4200,
) -> None:
    """Prefect's server and UI, every deployment, and workers for them, on this machine until Ctrl-C."""
    from flows.serve.command import serve as run_serve

    raise typer.Exit(run_serve(port))


@app.command()
def version() -> None:
    """The installed version."""
    from importlib.metadata import version as installed

    print(installed("winnow-corpus"))


def print_json(held: RunSummary | dict[str, Any]) -> None:
    text = json.dumps(held if isinstance(held, dict) else held.model_dump(mode="json"), indent=2, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def main() -> None:
    """Entry point of the console script. What is wrong is one line, and nothing hides behind another's exit code."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="winnow", standalone_mode=False)
        if code == INTERRUPTED:  # Ctrl-C where no run drains
            _ended(code, "interrupted")
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    except BadParameters as error:
        _refused(str(error))
    except _USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx else "winnow"
        _refused(f"{error.format_message().rstrip('.')}; see {command} --help")
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # as rich ends the process; its 1 would say "different"
            _ended(UNREAD)
        raise
    except BrokenPipeError:
        _ended(UNREAD)
    except OSError as error:
        logging.getLogger("winnow").debug("ended", exc_info=True)
        _ended(OPEN, f"{error.filename or 'input or output'}: {(error.strerror or str(error)).lower()}")
    raise SystemExit(code or CLOSED)


def _ended(code: int, why: str = "") -> NoReturn:
    from tasks.logs import say

    if why:
        say(why)
    with suppress(OSError, ValueError):  # what still waits to be written has no reader: nothing more is said of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code) from None


def _refused(why: str) -> NoReturn:
    from tasks.logs import say

    say(why)
    raise SystemExit(REFUSED) from None


if __name__ == "__main__":
    main()
