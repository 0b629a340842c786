"""The rules of the house that no linter knows, checked on the syntax tree of every module."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("operators", "tasks", "flows")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
PYTHON_FILES = sorted([*MODULES, *(ROOT / "tests").rglob("*.py")])

LONGEST_FILE = 350
"""Hard limit in lines; most files stay under 300."""

MAY_WRITE = {
    "tasks/commit.py": "the one module that writes to storage",
    "tasks/models.py": "keeps converted models and their hashes in the user's cache, never in an output root",
    "tasks/diff/join.py": "splits rows over files in the system's temporary folder, never in a store",
    "operators/language/embedded.py": "converts a packaged model in the folder that tasks/models.py hands it",
}
WRITING_METHODS = {
    *("write_text", "write_bytes", "write_table", "write_dataset", "write_feather", "write_to_dataset", "to_parquet"),
    *("write_parquet", "write_csv", "write_ndjson", "write_json", "sink_parquet", "sink_csv", "sink_ndjson", "to_csv"),
    *(
        "pipe_file",
        "put_file",
        "savez",
        "savetxt",
        "tofile",
        "save_file",
        "save_pretrained",
        "hardlink_to",
        "symlink_to",
    ),
    *("cp_file", "mv_file", "copyfile", "copytree", "open_output_stream", "open_append_stream", "put_object"),
}
WRITERS_BY_OWNER = {
    "os": {"link", "rename", "replace", "symlink"},
    "shutil": {"copy", "copy2", "move"},
    "fs": {"pipe", "put", "copy", "cp", "mv", "move", "rename", "touch"},
    "filesystem": {"pipe", "put", "copy", "cp", "mv", "move", "rename", "touch"},
    "torch": {"save"},
    "np": {"save"},
    "joblib": {"dump"},
    "pickle": {"dump"},
    "chart": {"save"},
}
HEAVY = {"torch", "vllm", "transformers", "ray", "prefect", "sklearn", "scipy", "accelerate", "gguf", "fasttext"}
NOT_IN_OPERATORS_AT_ALL = {"ray", "prefect", "fsspec", "s3fs", "tasks", "flows"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _name(node: ast.expr) -> str:
    """The last word of a dotted name: ``store.fs`` -> "fs"."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _opens_for_writing(call: ast.Call) -> bool:
    positional = (
        call.args[1:2] if isinstance(call.func, ast.Name) else call.args[:2]
    )  # open(path, mode), path.open(mode)
    modes = [k.value for k in call.keywords if k.arg == "mode"] + positional
    words = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
    return any(re.fullmatch(r"[rwxabt+]{1,4}", word) and set(word) & set("wxa+") for word in words)


def _in_memory(source: ast.AST) -> set[str]:
    """Names that are assigned a buffer in memory somewhere below ``source``."""
    return {
        target.id
        for node in ast.walk(source)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and _name(node.value.func) in {"BufferOutputStream", "BytesIO"}
    }


def writes(source: ast.AST) -> Iterator[str]:
    """Every call below ``source`` that creates, replaces or copies a file or an object, as "line: call"."""
    buffers = _in_memory(source)
    for call in (node for node in ast.walk(source) if isinstance(node, ast.Call)):
        name = _name(call.func)
        owner = _name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        owner = owner.lstrip("_")
        if {argument.id for argument in call.args[:2] if isinstance(argument, ast.Name)} & buffers:
            continue
        if (
            name in WRITING_METHODS
            or name in WRITERS_BY_OWNER.get(owner, ())
            or (name in {"ParquetWriter", "OSFile", "NamedTemporaryFile", "mkstemp"})
            or (name in {"open", "fdopen", "GzipFile"} and _opens_for_writing(call))
            or (owner == "os" and name == "open" and "O_CREAT" in ast.dump(call))
        ):
            yield f"{call.lineno}: {ast.unparse(call)[:80]}"


@pytest.mark.parametrize(
    "line",
    [
        "open('a', 'w')",
        "path.open('xb')",
        "fs.open(url, mode='wb')",
        "self.fs.pipe(url, data)",
        "self._fs.put(a, b)",
        "pq.write_table(table, path)",
        "pq.ParquetWriter(path, schema)",
        "Path('a').write_text('b')",
        "os.link(a, b)",
        "os.open(path, os.O_CREAT | os.O_WRONLY)",
        "frame.write_parquet(path)",
    ],
)
def test_the_scan_sees_a_write(line: str) -> None:
    assert list(writes(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "open('a')",
        "path.open('rb')",
        "queue.put(1)",
        "ray.put(1)",
        "'a'.replace('b', 'c')",
        "os.open(p, os.O_RDONLY)",
        "sink = pa.BufferOutputStream()\npq.write_table(table, sink)",
    ],
)
def test_the_scan_lets_reading_pass(line: str) -> None:
    assert list(writes(ast.parse(line))) == []


def test_only_the_commit_module_writes() -> None:
    found = {relative(path): list(writes(tree(path))) for path in MODULES if relative(path) not in MAY_WRITE}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_every_exception_to_the_writing_rule_is_needed() -> None:
    assert [path for path in MAY_WRITE if not (ROOT / path).exists() or not list(writes(tree(ROOT / path)))] == []


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in PYTHON_FILES}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_room_without_a_purpose() -> None:
    words = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert [relative(path) for path in PYTHON_FILES if words & {*path.relative_to(ROOT).with_suffix("").parts}] == []


def _swallows(handler: ast.ExceptHandler, anything: bool) -> bool:
    """Bare, or nothing but ``pass``: in tests a named, narrow error may be passed over, elsewhere none."""
    if handler.type is None:
        return True
    passes = len(handler.body) == 1 and isinstance(handler.body[0], ast.Pass)
    return passes and (anything or _name(handler.type) in {"Exception", "BaseException"})


def test_no_error_is_swallowed() -> None:
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in PYTHON_FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and _swallows(node, anything=path in MODULES)
    ]
    assert found == []


def _imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module.partition(".")[0]


def _at_import_time(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: not those in functions nor under TYPE_CHECKING."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            continue
        yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            yield from _at_import_time(getattr(node, field, []))


def test_operators_import_heavy_packages_only_in_functions() -> None:
    found = [
        f"{relative(path)}:{line} {name}"
        for path in MODULES
        if relative(path).startswith("operators/")
        for line, name in _imported(_at_import_time(tree(path).body))
        if name in HEAVY
    ]
    assert found == []


def test_operators_know_neither_orchestration_nor_storage() -> None:
    found = [
        f"{relative(path)}:{line} {name}"
        for path in MODULES
        if relative(path).startswith("operators/")
        for line, name in _imported(ast.walk(tree(path)))
        if name in NOT_IN_OPERATORS_AT_ALL
    ]
    assert found == []


def test_no_path_of_one_machine() -> None:
    texts = [ROOT / name for name in ("Makefile", "pyproject.toml", ".ci/run", ".pre-commit-config.yaml")]
    texts += [*PYTHON_FILES, *(ROOT / "infra").glob("*.*"), *(ROOT / "requirements").glob("*.lock"), *ROOT.glob("*.md")]
    machine = re.compile(r"(?<![\w/.$}])/(?:home|root|Users|work|opt|mnt|data)/\w")
    found = [
        f"{relative(path)}:{number}"
        for path in texts
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert found == []


def pins(lock: str) -> dict[str, str]:
    """Package -> version of a lock file; a line that is no exact pin fails the test."""
    found = {}
    for line in (ROOT / "requirements" / lock).read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
        assert match, f"requirements/{lock}: {line!r} is no exact pin"
        name = canonicalize_name(match[1])
        assert name not in found, f"requirements/{lock}: {name} stands there twice"
        found[name] = match[2]
    return found


@pytest.mark.parametrize("lock", ["cpu.lock", "dev.lock", "vision.lock", "gpu.lock"])
def test_lock_files_hold_exact_pins(lock: str) -> None:
    assert len(pins(lock)) > 10


def test_locks_that_are_installed_together_do_not_contradict_each_other() -> None:
    cpu, dev, vision = pins("cpu.lock"), pins("dev.lock"), pins("vision.lock")
    assert cpu.keys() & dev.keys() == set()
    assert cpu.keys() & vision.keys() == set()
    assert {name for name in dev.keys() & vision.keys() if dev[name] != vision[name]} == set()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        (["cpu.lock"], ["language", "demo"]),
        (["cpu.lock", "dev.lock"], ["dev"]),
        (["cpu.lock", "vision.lock"], ["vision"]),
        (["gpu.lock"], ["gpu", "demo"]),
    ],
)
def test_what_the_project_declares_is_locked(lock: list[str], extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    locked = {name: version for file in lock for name, version in pins(file).items()}
    declared = project["dependencies"] + [r for extra in extras for r in project["optional-dependencies"][extra]]
    wrong = [
        f"{requirement}: {locked.get(canonicalize_name(requirement.name), 'absent')}"
        for requirement in map(Requirement, declared)
        if not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), "0"), prereleases=True)
        or canonicalize_name(requirement.name) not in locked
    ]
    assert wrong == []
