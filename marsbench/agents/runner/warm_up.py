"""A model that says one word, for as long as an agent warms up.

The first request of a process imports hundreds of modules and reads tables, some 0.6 s of CPU time: that
is start-up, and belongs before the task's arrival. So an agent asks this model once, with the client that
it will use, and nothing of it reaches the system under test.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPLY = "ready"
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@contextlib.contextmanager
def small_model() -> Iterator[str]:
    """Serves chat completions on loopback, streamed or whole; gives its base URL, without /v1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers every POST."""

    def log_message(self, *_args: Any) -> None:
        """Nobody reads it."""

    def do_POST(self) -> None:
        """One reply."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        head = {"id": "warm-up", "created": 1, "model": body.get("model", "")}
        if not body.get("stream"):
            message = {"role": "assistant", "content": REPLY}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            found = {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE}
            self._send("application/json", json.dumps(found).encode())
            return
        deltas = [({"role": "assistant", "content": REPLY}, None), ({}, "stop")]
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in deltas
        ]
        chunks.append({"choices": [], "usage": USAGE})
        lines = [json.dumps({**head, "object": "chat.completion.chunk", **c}) for c in chunks]
        text = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
        self._send("text/event-stream", text.encode())

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
