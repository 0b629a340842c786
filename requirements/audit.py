"""Asks a service for known vulnerabilities of every pinned package: ``python requirements/audit.py [LOCK ...]``.

Exit code 1 where there is one that ``audit.toml`` does not name, or names with a date that is over. Where no service
answers within a minute it says so and ends with 0: what cannot be asked must not stop whoever builds.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SERVICES = ("pypi", "osv")
"""Of pip-audit, the first that answers: the JSON of the package index, and the database of open-source advisories."""
ASK_SECONDS, ALL_SECONDS = 25.0, 420.0
PROBE = 3
"""Packages that show whether a service answers at all. pip-audit itself calls a package that it could not ask fine."""
URL = "AUDIT_OSV_URL"
"""Environment variable: another address of the advisories, such as a mirror."""


@dataclass(frozen=True)
class Answer:
    """``found``: (package, version, advisory, aliases, fixed in). ``asked``, ``unknown``: packages by name."""

    found: list[tuple[str, str, str, tuple[str, ...], str]]
    asked: list[str]
    unknown: list[str]


def pins(locks: Iterable[Path]) -> list[list[str]]:
    """Every pinned version once, in passes that each hold a package once: a tool takes no package twice."""
    passes: list[dict[str, str]] = []
    for lock in locks:
        for line in lock.read_text("utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            name = line.partition("==")[0].lower().replace("_", "-")
            if any(one.get(name) == line for one in passes):
                continue
            free = next((one for one in passes if name not in one), None)
            if free is None:
                passes.append(free := {})
            free[name] = line
    return [list(one.values()) for one in passes]


def ask(lines: list[str], service: str, seconds: float) -> Answer | None:
    """None where the service did not answer."""
    with tempfile.TemporaryDirectory(prefix="winnow-audit-") as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join(lines) + "\n", "utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip"]
        command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
        command += ["--cache-dir", str(Path(folder) / "cache"), "--timeout", "5"]
        if service == "osv" and os.environ.get(URL):
            command += ["--osv-url", os.environ[URL]]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            held = json.loads(ended.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return None
    return read(held)


def read(held: list[dict[str, Any]]) -> Answer:
    asked = [one["name"] for one in held if "skip_reason" not in one]
    unknown = [one["name"] for one in held if "skip_reason" in one]
    found = [
        (one["name"], one["version"], told["id"], tuple(told.get("aliases", ())), ", ".join(told["fix_versions"]))
        for one in held
        for told in one.get("vulns", ())
    ]
    return Answer(found, asked, unknown)


def judged(answer: Answer, let_pass: list[dict[str, Any]], today: dt.date) -> tuple[list[str], list[str]]:
    """Lines that fail the audit, and lines of what is let pass."""
    fail, let = [], []
    for package, version, advisory, aliases, fixed in answer.found:
        line = f"{package} {version}: {advisory} ({', '.join(aliases) or 'no alias'}), fixed in {fixed or 'no version'}"
        known = [one for one in let_pass if one["package"] == package and one["id"] in (advisory, *aliases)]
        if not known:
            fail.append(line)
        elif known[0]["until"] <= today:
            fail.append(f"{line}; let pass until {known[0]['until']}, which is over: {known[0]['reason']}")
        else:
            let.append(f"{line}; let pass until {known[0]['until']}: {known[0]['reason']}")
    return fail, let


def audit(locks: list[Path]) -> int:
    rounds = pins(locks)
    # well-known packages, which every service has: the last of them is Prefect's own
    known = [line for line in rounds[0] if line.partition("==")[0] in ("jinja2", "requests", "prefect")][:PROBE]
    probe = known or rounds[0][:PROBE]
    service = None
    for one in ("osv",) if os.environ.get(URL) else SERVICES:
        answer = ask(probe, one, ASK_SECONDS)
        if answer is not None and answer.asked:
            service = one
            break
    answers = [ask(lines, service, ALL_SECONDS) for lines in rounds] if service else [None]
    whole = [one for one in answers if one is not None]
    total = sum(len(lines) for lines in rounds)
    if not whole or len(whole) < len(answers):
        say(f"NOT AUDITED: no service answered for {total} pinned packages; run `make audit` where one does")
    asked = sorted({name for one in whole for name in one.asked})
    unknown = sorted({name for one in whole for name in one.unknown} - set(asked))
    answer = Answer([line for one in whole for line in one.found], asked, unknown)
    let_pass = tomllib.loads((FOLDER / "audit.toml").read_text("utf-8")).get("vulnerability", [])
    fail, let = judged(answer, let_pass, dt.datetime.now(dt.UTC).date())
    for line in let:
        say(line)
    for line in fail:
        say(f"VULNERABLE: {line}")
    if unknown:
        say(f"the service {service} does not know {len(unknown)} of them: {', '.join(unknown)}")
    if whole:
        say(f"{len(asked)} packages asked for at {service}: {len(fail)} known vulnerabilities, {len(let)} let pass")
    return 1 if fail else 0


def say(line: str) -> None:
    sys.stderr.write(f"audit: {line}\n")


if __name__ == "__main__":
    raise SystemExit(audit([Path(one) for one in sys.argv[1:]] or sorted(FOLDER.glob("*.lock"))))
