"""The dependencies: what is installed is what is locked, under licences that were looked at, and the audit can fail."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tasks.models import resolve
from tasks.untrusted import PICKLES, looks_pickled
from tests.test_house import pins

FOLDER = Path(__file__).resolve().parents[1] / "requirements"
HELD = tomllib.loads((FOLDER / "audit.toml").read_text("utf-8"))
LOCKS = ("cpu.lock", "dev.lock", "vision.lock")
SPELLED = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "isc license": "ISC",
    "mit licence": "MIT",
    "psfl": "PSF-2.0",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
"""What packages write in place of the names of SPDX."""
HERE = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
"""Where this environment is installed: Ray, once imported, adds a folder of its own copies to the path."""
SAYS_NOTHING = {"OSI Approved", "DFSG approved"}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", FOLDER / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


AUDIT = load()


def installed() -> dict[str, Distribution]:
    """What the locks name and this environment has."""
    locked = {name for lock in LOCKS for name in pins(lock)}
    found = {canonicalize_name(one.metadata["Name"]): one for one in distributions(path=HERE)}
    return {name: one for name, one in sorted(found.items()) if name in locked}


# -- what is installed -----------------------------------------------------------------------------------------------


def test_what_is_installed_is_what_is_locked() -> None:
    locked = {name: version for lock in LOCKS for name, version in pins(lock).items()}
    wrong = {
        name: f"{one.version}, locked {locked[name]}"
        for name, one in installed().items()
        if one.version.partition("+")[0] != locked[name]
    }
    assert wrong == {} and len(installed()) > 200


def test_no_two_distributions_have_the_same_name() -> None:
    names = Counter(canonicalize_name(one.metadata["Name"]) for one in distributions(path=HERE))
    assert [name for name, count in names.items() if count > 1] == []


def licence(one: Distribution) -> str:
    """As the package says it, in SPDX's words where they are known; empty where it says nothing."""
    if expression := one.metadata.get("License-Expression"):
        return str(expression)
    said = (one.metadata.get("License") or "").strip()
    title, whole, _ = said.partition("\n")  # some hold the whole text
    if title.lower() in SPELLED:
        return SPELLED[title.lower()]
    if title and not whole and len(title) <= 60 and title.upper() not in ("UNKNOWN", "DUAL LICENSE"):
        return title
    kinds = [line.rpartition("::")[2].strip() for line in one.metadata.get_all("Classifier") or () if "License" in line]
    return " AND ".join(SPELLED.get(kind.lower(), kind) for kind in kinds if kind not in SAYS_NOTHING)


@cache
def spdx() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def allowed(expression: str) -> bool:
    """An expression of SPDX: one side of an OR is enough, all of an AND are needed."""
    from license_expression import ExpressionError

    try:
        parsed = spdx().parse(expression, validate=True)
    except ExpressionError:
        return False
    return parsed is not None and _allowed(parsed)


def _allowed(parsed: Any) -> bool:
    if isinstance(getattr(parsed, "args", None), tuple) and parsed.args and hasattr(parsed, "operator"):
        kept = [_allowed(one) for one in parsed.args]
        return any(kept) if parsed.operator == "|" or type(parsed).__name__ == "OR" else all(kept)
    return all(part in HELD["licences"] for part in str(parsed).split(" WITH "))


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("A licence of our own", False),
        ("", False),
    ],
)
def test_an_expression_is_read_as_spdx_means_it(expression: str, passes: bool) -> None:
    assert allowed(expression) is passes


def test_every_licence_is_one_that_was_looked_at() -> None:
    reviewed = {canonicalize_name(name): one["licence"] for name, one in HELD["reviewed"].items()}
    told = {name: licence(one) for name, one in installed().items()}
    strange = {name: said for name, said in told.items() if not allowed(said) and name not in reviewed}
    assert strange == {}, "look at the licence, then name it in requirements/audit.toml"
    needless = [name for name in reviewed if name in told and allowed(told[name])]
    assert needless == [], "reviewed, and says by now that it is fine"
    assert all(len(one["reason"]) > 20 for one in HELD["reviewed"].values())


def test_no_model_that_a_package_ships_is_a_pickle() -> None:
    from operators.language.identify import LanguageId
    from operators.language.tokens import TokenCount
    from operators.safety.harm_score import HarmScore

    references = [one for kind in (LanguageId, TokenCount, HarmScore) for one in kind().models().values()]
    assert len(references) >= 4
    for reference in references:
        path = resolve(reference).path
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        assert [one.name for one in files if one.suffix in PICKLES and looks_pickled(one)] == [], reference


# -- the audit -------------------------------------------------------------------------------------------------------


def vulnerability(name: str, fixed: str = "9.9") -> dict[str, Any]:
    events = [{"introduced": "0"}, {"fixed": fixed}]
    affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {"id": "GHSA-test-test-test", "aliases": ["CVE-2026-0001"], "summary": "bad", "affected": [affected]}


@contextmanager
def advisories(vulnerable: set[str], status: int = 200) -> Iterator[str]:
    """Stands for the database of advisories, by its API; a fake, because a real one cannot be reached from a test."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            body = json.dumps({"vulns": [vulnerability(asked)]} if asked in vulnerable else {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()


def audited(tmp_path: Path, url: str, lines: str, monkeypatch: pytest.MonkeyPatch) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pip_audit", reason="pip-audit is not installed: run make install-dev")
    monkeypatch.setenv("AUDIT_OSV_URL", url)
    lock = tmp_path / "some.lock"
    lock.write_text(lines)
    command = [sys.executable, str(FOLDER / "audit.py"), str(lock)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_known_vulnerability_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with advisories({"idna"}) as url:
        ended = audited(tmp_path, url, "# a comment\nidna==3.6\njinja2==3.1.6\n", monkeypatch)
    assert ended.returncode == 1, ended.stderr
    assert "VULNERABLE: idna 3.6: CVE-2026-0001 (GHSA-test-test-test), fixed in 9.9" in ended.stderr
    assert "2 packages asked for at osv: 1 known vulnerabilities, 0 let pass" in ended.stderr


def test_nothing_known_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with advisories(set()) as url:
        ended = audited(tmp_path, url, "idna==3.6\n", monkeypatch)
    assert ended.returncode == 0 and "1 packages asked for at osv: 0 known" in ended.stderr, ended.stderr


def test_a_service_that_does_not_answer_is_said_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with advisories(set(), status=503) as url:
        down = audited(tmp_path, url, "idna==3.6\n", monkeypatch)
    gone = audited(tmp_path, url, "idna==3.6\n", monkeypatch)
    for ended in (down, gone):
        assert ended.returncode == 0 and "NOT AUDITED: no service answered for 1 pinned packages" in ended.stderr
        assert "0 known vulnerabilities" not in ended.stderr, "what was not asked is not fine"


def test_a_package_that_the_service_does_not_know_is_no_package_that_is_fine() -> None:
    answer = AUDIT.read([{"name": "a", "skip_reason": "not found"}, {"name": "b", "version": "1", "vulns": []}])
    assert (answer.asked, answer.unknown, answer.found) == (["b"], ["a"], [])


def test_what_is_let_pass_is_let_pass_until_its_date() -> None:
    answer = AUDIT.Answer([("idna", "3.6", "GHSA-1", ("CVE-1",), "4")], ["idna"], [])
    today = dt.date(2026, 12, 1)

    def judged(**entry: Any) -> tuple[int, int]:
        held = {"package": "idna", "id": "CVE-1", "reason": "never called", "until": dt.date(2027, 1, 1), **entry}
        fail, let = AUDIT.judged(answer, [held], today)
        return len(fail), len(let)

    assert judged() == (0, 1)
    assert judged(id="GHSA-1") == (0, 1)
    assert judged(until=today) == judged(package="other") == judged(id="CVE-2") == (1, 0)


def test_every_exception_has_a_package_a_reason_and_a_date() -> None:
    for one in HELD.get("vulnerability", []):
        assert {"id", "package", "reason", "until"} == one.keys() and isinstance(one["until"], dt.date)
        assert len(one["reason"]) > 20


def test_the_audit_asks_for_every_pin_of_every_lock_once() -> None:
    locks = sorted(FOLDER.glob("*.lock"))
    rounds = AUDIT.pins(locks)
    asked = [line.lower() for lines in rounds for line in lines]
    assert len(asked) == len(set(asked))
    for lock in locks:
        wanted = {line.lower() for line in lock.read_text().splitlines() if line and not line.startswith("#")}
        assert wanted <= set(asked), lock.name
    for lines in rounds:
        names = [canonicalize_name(line.partition("==")[0]) for line in lines]
        assert len(names) == len(set(names))
