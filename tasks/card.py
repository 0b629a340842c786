"""The dataset card of a corpus: what is in it, how it was made, and how to read it. Markdown with YAML front matter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jinja2
import yaml

from tasks.summary import RunSummary

_CARD = """\
---
{{ front }}---
# Curated text corpus {{ fingerprint }}

Made by winnow {{ version }} from `{{ summary.input }}`.

| | |
|---|---|
| documents | {{ "{:,}".format(accounts.rows_out) }} |
{% for origin, count in accounts.tokens.items() -%}
| {{ origin }} tokens | {{ "{:,}".format(count) }} |
{% endfor -%}
| synthetic share of tokens | {{ "%.2f %%" | format(100 * mix.get("realised_synthetic_share", 0)) }} |

## Columns
{{ columns }}

`origin` is `real` or `synthetic`; a synthetic row names its source by `parent_id`, `source_shard` and
`source_ordinal`. Where `tagged` is true the text holds harm tags;
taking them out restores the source text byte for byte.

## Read it
```python
import polars
polars.read_parquet("{{ folder }}/*.parquet")
```

## Stages
| stage | operator | version | fingerprint | rows in | rows out |
|---|---|---|---|---:|---:|
{% for stage in summary.stages -%}
| {{ stage.name }} | {{ stage.operator }} | {{ stage.version }} | `{{ stage.fingerprint }}` | {{ counts(stage) }} |
{% endfor %}
## Parameters
```yaml
{{ parameters }}```

## Limits
Scores and rephrases come from the models named above and carry their errors; read samples in the run's report
before training on it.
The licence of the text is that of its sources.
"""


def card(summary: RunSummary, folder: str, columns: Sequence[str]) -> str:
    """The card of the corpus that the last stage of ``summary`` made."""
    corpus = summary.stages[-1]
    front = {
        "pretty_name": f"winnow corpus {corpus.fingerprint}",
        "size_categories": [size_category(corpus.accounts.rows_out)],
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": f"{folder}/*.parquet"}],
    }
    template = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(_CARD)  # noqa: S701 (markdown)
    return template.render(
        front=yaml.safe_dump(front, sort_keys=False),
        fingerprint=corpus.fingerprint,
        version=summary.versions.get("winnow-corpus", ""),
        summary=summary,
        accounts=corpus.accounts,
        mix=summary.mix,
        columns=", ".join(f"`{name}`" for name in columns),
        folder=folder,
        counts=lambda stage: f"{stage.accounts.rows_in:,} | {stage.accounts.rows_out:,}",
        parameters=yaml.safe_dump(summary.parameters, sort_keys=False, default_flow_style=None),
    )


def size_category(rows: int) -> str:
    """The hub's size classes: n<1K, 1K<n<10K, ..."""
    if rows < 1000:
        return "n<1K"
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    place = min(int(math.log10(rows)) - 3, len(names) - 2)
    return f"{names[place]}<n<{names[place + 1]}"
