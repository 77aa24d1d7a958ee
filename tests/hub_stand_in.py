"""A server that answers the hub's API about a few models, some of them gated; nothing can be fetched from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GATED = "black-forest-labs/FLUX.1-dev"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "google/flan-t5-xxl": {"config.json": 674, "tokenizer_config.json": 2539, "model.safetensors": 22_000_000_000},
    "Qwen/Qwen2-VL-7B-Instruct": {"config.json": 1200, "model.safetensors": 16_000_000_000},
    GATED: {"model_index.json": 536, "transformer/config.json": 378},
}


class Answers(BaseHTTPRequestHandler):
    """GET of a model's description, HEAD of a file."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/").split("/revision/")
        if name[0] not in FILES:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif len(name) > 1 and name[1] not in ("main", COMMIT):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [{"rfilename": file, "size": size} for file, size in FILES[name[0]].items()]
            about = {"id": name[0], "sha": COMMIT, "siblings": files, "cardData": {"license": "apache-2.0"}}
            self.answer(200, json.dumps(about).encode(), {})

    def do_HEAD(self) -> None:
        gated = self.path.startswith(f"/{GATED}/")
        headers = {"X-Error-Code": "GatedRepo"} if gated else {"X-Repo-Commit": COMMIT, "ETag": '"1"'}
        self.answer(403 if gated else 200, b"", headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body)), "Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def hub() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
