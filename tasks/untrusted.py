"""What in a stranger's model folder could run code, or lead out of the folder: looked for before anything is loaded.

The engines refuse the same once more (no remote code, safetensors alone, a sandbox for chat templates). Here it is said
in one line, before a worker starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Endings of files that are read by unpickling them."""
ADAPTER = "adapter_config.json"
_INDEX = ".index.json"
_LARGEST_CONFIG = 64 * 2**20  # bytes; an index of a thousand shards has some megabytes


def looks_pickled(path: Path) -> bool:
    """Protocol 2 and later starts with 0x80; torch.save writes a zip. fastText's .bin is neither."""
    with path.open("rb") as file:
        head = file.read(4)
    return head[:1] == b"\x80" or head == b"PK\x03\x04" or path.suffix != ".bin"


def complaint(folder: Path, files: Iterable[Path]) -> str:
    """Why a model folder with these files is not loaded, with the remedy; empty where nothing is wrong."""
    files = list(files)
    for path in files:
        if leads_out(path, folder):
            return (
                f"{path.relative_to(folder)} is a link that leads out of the folder; put the file itself there, or "
                "name the folder that it lies in"
            )
    for path in (one for one in files if one.parent == folder and one.suffix == ".json"):
        if path.name == ADAPTER:
            return f"{ADAPTER} makes it an adapter of another model; merge it into that one and save the whole"
        if not path.name.endswith((_INDEX, "config.json")):
            continue
        if path.stat().st_size > _LARGEST_CONFIG:
            return (
                f"its {path.name} has {path.stat().st_size >> 20} MiB, and no configuration has; save the model again"
            )
        try:
            held = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            return f"its {path.name} is not JSON; save the model again"
        if not isinstance(held, dict):
            continue
        if "auto_map" in held:
            return (
                f"its {path.name} asks for remote code (auto_map); use a model whose architecture transformers knows, "
                "or take auto_map out"
            )
        if path.name.endswith(_INDEX) and (strange := _no_plain_shard(held)):
            return (
                f"its {path.name} names {strange!r}, which is no .safetensors file of the folder; save the model again"
            )
    return ""


def leads_out(path: Path, folder: Path) -> bool:
    """Whether the file lies elsewhere. In the hub's cache a snapshot is made of links to the blobs beside it."""
    places = [folder.resolve()]
    if folder.parent.name == "snapshots":
        places.append((folder.parent.parent / "blobs").resolve())
    real = path.resolve()
    return not any(real.is_relative_to(place) for place in places)


def _no_plain_shard(index: dict[str, object]) -> str:
    """The first file of an index of weights that is not simply a safetensors file beside it; empty if all are."""
    weights = index.get("weight_map")
    if not isinstance(weights, dict):
        return ""
    for name in weights.values():
        if not isinstance(name, str) or PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            return str(name)[:100]
    return ""
