"""Renders a run's summary as one HTML page: no script, no request, the same bytes for the same summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.report import numbers
from tasks.report.charts import chart, is_skewed
from tasks.report.facts import Fate, facts, fate, mix_words, repeat_command, verify_command, without_secrets
from tasks.report.flow_picture import NARROW, WIDE, picture
from tasks.report.samples import kinds
from tasks.summary import RunSummary, StageSummary

MAX_LINES = 12
"""Of failures, reasons, messages, notes and the like; what is more is counted."""
MAX_CHARACTERS = 200
"""Of one line of them."""
_UNPRINTABLE = {c: "\N{REPLACEMENT CHARACTER}" for c in range(32) if chr(c) not in "\t\n\r"}


def render(summary: RunSummary) -> str:
    """The report as one self-contained HTML page of at most about 400 KB, to be written as UTF-8."""
    page = _environment().get_template("report.html.j2")
    html = page.render(
        summary=RunSummary.model_validate(without_secrets(summary.model_dump(mode="python"))),
        facts=facts(summary),
        wide=picture(summary, WIDE),
        narrow=picture(summary, NARROW),
        histograms=[(h, chart(h, f"h{i}"), is_skewed(h.counts)) for i, h in enumerate(summary.histograms[:MAX_LINES])],
        kinds=kinds(summary),
        parameters=_yaml(summary.parameters),
        repeat=repeat_command(summary),
        verify=verify_command(summary),
        longest=max((stage.seconds for stage in summary.stages), default=0.0),
    )
    return html.translate(_UNPRINTABLE).encode("utf-8", "replace").decode("utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        exact=numbers.exact, readable=numbers.readable, short=numbers.short, duration=numbers.duration, line=line,
        rest=rest, largest=largest, first=first, fate=lambda name: fate(name).value, plain=_plain,
    )  # fmt: skip
    environment.globals.update(
        share=numbers.share, rate=numbers.rate, mix_words=mix_words, bar=stacked_bar, stage_bar=stage_bar
    )
    return environment


def line(text: Any) -> str:
    """One line of bounded length."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= MAX_CHARACTERS else flat[: MAX_CHARACTERS - 1] + "…"


def first(many: Any) -> list[Any]:
    return list(many.items() if isinstance(many, Mapping) else many)[:MAX_LINES]


def rest(many: Any) -> int:
    return max(0, len(many) - MAX_LINES)


def largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_LINES]


def stacked_bar(counts: Mapping[str, int]) -> Markup:
    """The parts of a whole as one thin bar; said in words beside it, so it is hidden from screen readers.

    Nothing where there is only one part: it would say nothing.
    """
    total = sum(counts.values())
    parts, x = [], 0.0
    for name, count in sorted(counts.items(), key=lambda item: (list(Fate).index(fate(item[0])), item[0])):
        width = max(0.6, 100 * count / total) if count else 0.0
        x = min(x, 100 - width)  # a sliver at the end stays inside
        parts.append(
            Markup('<rect class="t-{}" x="{:.2f}" width="{:.2f}" height="6"/>').format(fate(name).value, x, width)
        )
        x += width
    return _strip(parts, 6) if total and sum(map(bool, counts.values())) > 1 else Markup("")


def stage_bar(stage: StageSummary, longest: float) -> Markup:
    """Set-up and work of a stage, as long as its share of the longest stage."""
    if longest <= 0 or stage.seconds <= 0:
        return Markup("")
    whole = max(0.6, 100 * stage.seconds / longest)
    setup = min(whole, 100 * stage.setup_seconds / longest)
    parts = [
        Markup('<rect class="t-setup" x="0" width="{:.2f}" height="12"/>').format(setup),
        Markup('<rect class="t-bin" x="{:.2f}" width="{:.2f}" height="12"/>').format(setup, whole - setup),
    ]
    return _strip(parts, 12)


def _strip(parts: list[Markup], height: int) -> Markup:
    return Markup(
        '<svg class="strip" viewBox="0 0 100 {0}" preserveAspectRatio="none" aria-hidden="true" height="{0}">{1}</svg>'
    ).format(height, Markup("").join(parts))


def _plain(value: Any) -> str:
    """A note's value as a person writes it: numbers short, lists with commas, nested mappings as ``a: b``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int):
        return numbers.exact(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return line(", ".join(f"{key}: {_plain(item)}" for key, item in value.items()))
    if isinstance(value, list | tuple):
        return line(", ".join(_plain(item) for item in value))
    return line(value)


def _yaml(parameters: Mapping[str, Any]) -> str:
    """The parameters as the YAML file that starts the same run."""
    simple = json.loads(json.dumps(without_secrets(dict(parameters)), default=str))
    text: str = yaml.safe_dump(simple, sort_keys=False, allow_unicode=True, width=100) if simple else ""
    lines = text.splitlines()
    cut = [one if len(one) <= MAX_CHARACTERS else one[: MAX_CHARACTERS - 1] + "…" for one in lines[:200]]
    if len(lines) > len(cut):
        cut.append(f"# ... {len(lines) - len(cut)} more lines")
    return "\n".join(cut)
