"""Wherever infra/ and docs/ set a Ray up that others can reach, it wants a token; Ray's own default is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.infra.test_kubernetes import MANIFESTS, documents

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "infra").rglob("*.md")])


def clusters(held: Any) -> list[dict[str, Any]]:
    """Every description of a Ray cluster in a manifest, however deep."""
    if isinstance(held, list):
        return [one for part in held for one in clusters(part)]
    if not isinstance(held, dict):
        return []
    return [held] * ("headGroupSpec" in held) + [one for part in held.values() for one in clusters(part)]


def unguarded(text: str) -> list[str]:
    """Commands of a page that start a Ray before the page has asked for a token."""
    found, guarded = [], False
    for line in (line for block in FENCE.findall(text) for line in block.splitlines()):
        guarded = guarded or "RAY_AUTH_MODE=token" in line
        if re.match(r"\s*(sudo )?ray start\b", line) and not guarded:
            found.append(line.strip())
    return found


def test_every_ray_of_compose_wants_the_token_that_is_given_from_outside() -> None:
    services = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]
    rays = {name: one for name, one in services.items() if "ray" in (one.get("command") or [])[:1]}
    assert len(rays) >= 2
    drivers = {name: one for name, one in services.items() if (one.get("command") or [""])[0] == "prefect"}
    for name, one in {**rays, "worker": drivers["worker"]}.items():
        assert one["environment"]["RAY_AUTH_MODE"] == "token", name
        assert re.fullmatch(r"\$\{RAY_TOKEN:\?.*\}", one["environment"]["RAY_AUTH_TOKEN"]), name


def test_every_cluster_on_kubernetes_wants_the_token_of_a_secret() -> None:
    found = [one for path in MANIFESTS for held in documents(path) for one in clusters(held)]
    assert len(found) >= 2
    for one in found:
        assert one["authOptions"]["mode"] == "token" and one["authOptions"]["secretName"]
        for group in (one["headGroupSpec"], *one["workerGroupSpecs"]):
            assert not {"auth-mode", "disable-auth"} & set(group.get("rayStartParams", {}))


def test_no_page_starts_a_ray_without_a_token() -> None:
    assert {page.name: lines for page in PAGES if (lines := unguarded(page.read_text("utf-8")))} == {}
    assert sum("ray start" in page.read_text("utf-8") for page in PAGES) >= 1


def test_the_look_at_pages_sees_one_that_does() -> None:
    wrong = "```bash\nray start --head\n```\n```bash\nexport RAY_AUTH_MODE=token\nray start --address=HEAD:6379\n```\n"
    assert unguarded(wrong) == ["ray start --head"]


def test_no_server_of_the_images_listens_wider_than_its_container_asks() -> None:
    """Wide addresses stand in compose alone, whose ports are published on loopback (test_compose.py)."""
    assert "0.0.0.0" not in (ROOT / "infra/Dockerfile").read_text()
    code = [path for room in ("flows", "tasks") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in code if "0.0.0.0" in path.read_text("utf-8")] == []
