"""Parquet shards of real text for the overhead benchmarks: the demo's documents over and over, no two copies alike.

Each copy begins at another word of its document (the words before go to the end), so that neither Parquet's
dictionaries nor zstd make the copies cheaper to read than a crawl is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flows.demo_source import documents

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "url", "take")])


def write_shards(folder: Path, rows: int, shards: int, seed: int = 0) -> int:
    """Writes ``rows`` rows (id, text, url, ``take``: always yes) into ``shards`` files. Returns the bytes of text."""
    folder.mkdir(parents=True, exist_ok=True)
    base = list(documents(seed))
    draw = np.random.default_rng(seed)
    order = np.concatenate([draw.permutation(len(base)) for _ in range(-(-rows // len(base)))])[:rows]
    size = 0
    for number, part in enumerate(np.array_split(np.arange(rows), shards)):
        made = []
        for place in part.tolist():
            row = base[int(order[place])]
            text = _turned(row["text"], float(draw.random()))
            size += len(text.encode())
            made.append({"id": f"{row['id']}-{place}", "text": text, "url": row["url"], "take": "yes"})
        table = pa.Table.from_pylist(made, SCHEMA)
        pq.write_table(table, folder / f"part-{number:04}.parquet", compression="zstd")
    return size


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _turned(text: str, share: float) -> str:
    cut = text.rfind(" ", 0, int(len(text) * share)) + 1
    return text[cut:] + (" " if cut else "") + text[:cut]
