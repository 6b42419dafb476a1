"""What the gateway costs: requests per second and added latency against the backend alone.

Starts a fake backend and a gateway as processes and streams chat completions through both, at 1, 64
and 512 streams at once. ``--also NAME=URL`` measures another proxy that is already running in front
of the backend (its port is printed), side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np

CONCURRENCIES = (1, 64, 512)
START_S = 20.0
KEY = "sk-bench-key-for-a-local-measurement-0123456789"
"""What another proxy has to accept."""


@dataclass
class Sample:
    """Times of one target at one concurrency, seconds."""

    ttft_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    errors: int = 0
    wall_s: float = 0.0

    def row(self) -> dict[str, float]:
        ttft, total = (np.percentile(x, [50, 99]) * 1e3 for x in (self.ttft_s, self.total_s))
        return {
            "requests_per_s": len(self.total_s) / self.wall_s,
            "ttft_p50_ms": ttft[0],
            "ttft_p99_ms": ttft[1],
            "total_p50_ms": total[0],
            "total_p99_ms": total[1],
            "errors": self.errors,
        }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def stream(port: int, number: int, until: float, sample: Sample) -> None:
    """One client: one connection, one session, one stream after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    turn = 0
    while time.perf_counter() < until:
        content = f"client {number} turn {turn} " + "lorem ipsum " * 100
        body = {
            "model": "fake",
            "stream": True,
            "session_id": f"bench-{number}",
            "messages": [{"role": "user", "content": content}],
        }
        raw = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {KEY}\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        started = time.perf_counter()
        writer.write(head.encode() + raw)
        try:
            first = await reader.readuntil(b"data: ")
            ttft = time.perf_counter()
            await reader.readuntil(b"[DONE]")
            await reader.readuntil(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            sample.errors += 1
            break
        sample.errors += b" 200 " not in first.split(b"\r\n", 1)[0]
        sample.ttft_s.append(ttft - started)
        sample.total_s.append(time.perf_counter() - started)
        turn += 1
    writer.close()


async def measure(port: int, concurrency: int, seconds: float) -> Sample:
    sample = Sample()
    await asyncio.gather(
        *(stream(port, -1 - k, time.perf_counter() + 0.3, Sample()) for k in range(4))
    )
    started = time.perf_counter()
    await asyncio.gather(*(stream(port, k, started + seconds, sample) for k in range(concurrency)))
    sample.wall_s = time.perf_counter() - started
    return sample


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)  # a process that starts does not say when it listens: try again
        else:
            return
    raise SystemExit(f"nothing listens on port {port} after {START_S:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="per target and concurrency")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=1.0)
    parser.add_argument("--system", default="vllm")
    parser.add_argument("--concurrency", type=int, nargs="*", default=list(CONCURRENCIES))
    parser.add_argument("--also", metavar="NAME=PORT", action="append", default=[])
    parser.add_argument("--backend-port", type=int, default=0, help="fixed, for --also")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    backend_port, port = options.backend_port or free_port(), free_port()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    backend = subprocess.Popen(
        [sys.executable, "-m", "marsbench.gateway.fake_backend", "--port", str(backend_port),
         "--tokens", str(options.tokens), "--ttft-ms", str(options.ttft_ms),
         "--itl-ms", str(options.itl_ms)], env=environment,
    )  # fmt: skip
    wait_for(backend_port)
    gateway = subprocess.Popen(
        [sys.executable, "-c", "from marsbench.cli import main; main()", "serve",
         "-u", f"http://127.0.0.1:{backend_port}", "--port", str(port), "-s", options.system],
        env=environment,
    )  # fmt: skip
    try:
        wait_for(port)
        targets = {"backend": backend_port, "gateway": port}
        targets |= {name: int(at) for name, _, at in (text.partition("=") for text in options.also)}
        print(f"backend on port {backend_port}", file=sys.stderr)
        rows = []
        for concurrency in options.concurrency:
            found = {
                name: asyncio.run(measure(at, concurrency, options.seconds)).row()
                for name, at in targets.items()
            }
            rows += report(concurrency, found, quiet=options.json)
        if options.json:
            print(json.dumps(rows))
    finally:
        for process in (gateway, backend):
            process.terminate()
            process.wait()


def report(concurrency: int, found: dict[str, dict[str, float]], *, quiet: bool) -> list[dict]:
    rows = []
    for name, row in found.items():
        alone = found["backend"]
        added = {
            f"added_{key}": row[key] - alone[key]
            for key in ("ttft_p50_ms", "ttft_p99_ms", "total_p50_ms", "total_p99_ms")
        }
        rows.append({"streams": concurrency, "target": name, **row, **added})
        if not quiet:
            print(
                f"{concurrency:4d} streams  {name:8s} {row['requests_per_s']:8.1f} requests/s   "
                f"first token p50 {row['ttft_p50_ms']:7.1f} p99 {row['ttft_p99_ms']:7.1f} ms   "
                f"added p50 {added['added_ttft_p50_ms']:+7.1f} p99 {added['added_ttft_p99_ms']:+7.1f} ms   "
                f"whole reply p50 {row['total_p50_ms']:7.1f} p99 {row['total_p99_ms']:7.1f} ms   "
                f"errors {row['errors']:.0f}"
            )
    return rows


if __name__ == "__main__":
    main()
