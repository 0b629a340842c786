"""What a run listens on, as the kernel says it: loopback alone, and its Ray wants a token even there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.canaries import canaries, found
from tests.conftest import free_port
from tests.flows.serve.serving import ROOT, WINNOW, descendants
from tests.sockets import Socket, Watch, listening

STRANGER = """
import sys
import ray
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None)
    print("let in")
except Exception as error:
    print("refused", type(error).__name__, " ".join(str(error).split()))
"""


def stranger(address: str, **environment: str) -> str:
    """What a process without our environment is told by the head of a Ray."""
    held = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STRANGER, address]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**held, "HOME": "/nowhere", **environment},
    )
    return (ended.stdout.strip().splitlines() or [ended.stderr[-500:]])[-1]


def test_the_kernels_tables_are_read_right() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.create_server(("0.0.0.0", 0)) as wide,
        socket.create_server(("::", 0), family=socket.AF_INET6) as six,
    ):
        ports = {one.getsockname()[1]: name for one, name in ((loopback, "loopback"), (wide, "wide"), (six, "six"))}
        seen = {ports[one.port]: one for one in listening([os.getpid()]) if one.port in ports}
    assert {name: (one.address, one.loopback) for name, one in seen.items()} == {
        "loopback": ("127.0.0.1", True),
        "wide": ("0.0.0.0", False),
        "six": ("::", False),
    }


NETWORK = """
set -e
ip link set lo up
ip address add 192.0.2.9/32 dev lo
ip route add default dev lo
exec "$@"
"""
OWN_RAY = """
import json, os
from ray._private.services import get_node_ip_address
from tasks.ray_cluster import cluster
from tests.flows.serve.serving import descendants
from tests.sockets import listening
outer = get_node_ip_address()
with cluster(cpus=1):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    print(json.dumps([outer, *sorted(listening([os.getpid(), *descendants(os.getpid())]))]))
assert get_node_ip_address() == outer
"""


def test_our_own_ray_listens_on_loopback_alone_on_a_machine_with_a_network() -> None:
    """In a network of its own with an address that looks like one to the outside, which Ray by itself would take."""
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    for namespace in (["unshare", "--net"], ["unshare", "--net", "--user", "--map-root-user"]):
        if subprocess.run(
            [*namespace, "bash", "-c", NETWORK, "-", "true"], capture_output=True, check=False
        ).returncode:
            continue
        command = [*namespace, "bash", "-c", NETWORK, "-", sys.executable, "-c", OWN_RAY]
        held = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=held)
        assert ended.returncode == 0, ended.stderr[-2000:]
        outer, *sockets = json.loads(ended.stdout)
        assert outer == "192.0.2.9" and len(sockets) > 5
        assert [one for one in sockets if one[0] != "127.0.0.1"] == []
        return
    pytest.skip("no network can be made here (unshare, ip)")


def test_our_own_ray_lets_no_stranger_in_and_has_no_dashboard() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    from tasks.ray_cluster import cluster

    before = set(descendants(os.getpid()))
    with cluster(cpus=1):
        import ray

        ours = [pid for pid in descendants(os.getpid()) if pid not in before]
        sockets = listening(ours)
        head = ray.get_runtime_context().gcs_address
        assert len(sockets) > 3 and 8265 not in {one.port for one in sockets}
        assert [one for one in sockets if not quiet(one)] == []
        token = os.environ["RAY_AUTH_TOKEN"]
        commands = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in ours if Path(f"/proc/{pid}").exists())
        assert len(commands) > 1000 and found(commands, canaries(token=token), "a command line") == []
        assert stranger(head).startswith("refused AuthenticationError")
        wrong = stranger(head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)
        assert wrong.startswith("refused AuthenticationError")
        assert stranger(head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) == "let in", "the question itself is wrong"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_listens_on_loopback_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: run make install-dev")
    (tmp_path / "in").mkdir()
    text = "The old lighthouse on the cape was built in 1871, and a keeper lit its lamp every evening for years."
    (tmp_path / "in" / "a.jsonl").write_text("".join(f'{{"id": "{n}", "text": "{text} {n}."}}\n' for n in range(8)))
    hidden = ("PREFECT_API_URL", "PREFECT_PROFILE", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "OMP_NUM_THREADS": "1"}
    port = free_port()
    command = [WINNOW, "--metrics-port", str(port), "curate-text", "--no-rephrase", "--keep", "lang = 'en'"]
    command += ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--json"]
    with (tmp_path / "said").open("wb") as out:
        run = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    with Watch(lambda: [run.pid, *descendants(run.pid)]) as watch:
        try:
            assert run.wait(500) == 0, (tmp_path / "said").read_text()[-3000:]
        finally:
            if run.poll() is None:
                run.kill()
                time.sleep(1)
    prefect = {one for one in watch.seen if "prefect_server.py" in one.command}
    assert prefect and all(one.loopback for one in prefect), prefect
    metrics = {one for one in watch.seen if one.port == port}
    assert metrics and all(one.loopback for one in metrics), metrics
    assert 8265 not in {one.port for one in watch.seen} and [one for one in watch.seen if not quiet(one)] == []
    assert [one for one in watch.seen if not one.loopback] == []


def quiet(one: Socket) -> bool:
    """Whether it is no dashboard. Ray starts the program of it in any case, here for one part without pages."""
    return "dashboard/dashboard.py" not in one.command or (one.loopback and "--disable-frontend" in one.command)
