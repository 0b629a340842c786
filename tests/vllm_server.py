"""vLLM's own OpenAI-compatible server (its CPU build) with the embedded model, and a proxy that counts.

Both listen on loopback alone. The server is ended by its process id, with what it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

START_SECONDS = 300.0
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
}


class VLLMServer:
    """``with VLLMServer(folder, port, key, log) as server``. In float32 no greedy answer depends on its batch."""

    name = "smollm2"

    def __init__(self, folder: Path, port: int, key: str, log: Path, context: int = 1024) -> None:
        self.folder, self.port, self.key, self.log, self.context = folder, port, key, log, context
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> VLLMServer:
        self.launch()
        try:
            self.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def launch(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={self.folder}"]
        command += [f"--served-model-name={self.name}", "--host=127.0.0.1", f"--port={self.port}", "--dtype=float32"]
        command += [f"--max-model-len={self.context}", "--max-num-seqs=32", "--enforce-eager"]
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens=2048"]
        # the key by environment: a command line can be read by everyone on the machine
        environment = {**os.environ, **SETTINGS, "VLLM_API_KEY": self.key}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError with the end of its log where it does not."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.3)
        raise RuntimeError(f"vLLM's server did not come up: {self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """SIGKILL to the server and the engine process that it started (its own process group)."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


class CountingProxy:
    """Passes requests on and writes down which were answered whole. Where the server is gone it hangs up."""

    def __init__(self, port: int, backend: int) -> None:
        self.answered: Counter[bytes] = Counter()
        self.asked: Counter[bytes] = Counter()
        self.hung_up = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on("GET", b"")

            def do_POST(self) -> None:
                self._pass_on("POST", self.rfile.read(int(self.headers["content-length"])))

            def _pass_on(self, method: str, body: bytes) -> None:
                headers = {name: self.headers[name] for name in ("authorization", "content-type") if self.headers[name]}
                if body:
                    proxy._count(proxy.asked, body)
                try:
                    answer = httpx.request(
                        method, f"http://127.0.0.1:{backend}{self.path}", content=body, headers=headers, timeout=120
                    )
                except httpx.HTTPError:
                    proxy.hung_up += 1
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("content-type", ""))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)
                if body and answer.status_code == 200:
                    proxy._count(proxy.answered, body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _count(self, counter: Counter[bytes], body: bytes) -> None:
        with self._lock:
            counter[body] += 1

    def __enter__(self) -> CountingProxy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
