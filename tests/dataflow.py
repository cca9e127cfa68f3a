"""A stand-in of Dataflow's REST interface: it takes jobs, keeps them, and says of them what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_JOBS = "/v1b3/projects/project-1/locations/us-central1/jobs"


class Dataflow:
    """What the service knows.

    Attributes:
        url: where it answers. Beam speaks REST to a host by this name alone.
        jobs: bodies of the jobs that were created.
        updates: bodies of the changes of state that were asked for.
        state: of the only job.
        calls: methods and paths, in their order.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://localhost:{port}"
        self.jobs: list[bytes] = []
        self.updates: list[Any] = []
        self.state = "JOB_STATE_PENDING"
        self.calls: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> object:
        path = path.partition("?")[0]
        self.calls.append(f"{method} {path}")
        if (method, path) == ("POST", _JOBS):
            self.jobs.append(body)
        elif method == "PUT":
            self.updates.append(json.loads(body))
            self.state = "JOB_STATE_CANCELLED"
        elif path != f"{_JOBS}/job-1":
            return {}  # messages and metrics
        told = json.loads(self.jobs[-1])
        names = {"name": told["name"], "clientRequestId": told["clientRequestId"], "id": "job-1"}
        where = {"projectId": "project-1", "location": "us-central1", "createTime": "2026-01-01T00:00:00Z"}
        return {**names, **where, "currentState": self.state}


@contextmanager
def dataflow() -> Iterator[Dataflow]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            told = json.dumps(service.answer(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def do_POST(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Print no line for each request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service = Dataflow(server.server_port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield service
        finally:
            server.shutdown()
