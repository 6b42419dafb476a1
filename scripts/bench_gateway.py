"""What the gateway costs beside a bare backend: requests a second, first tokens, CPU time an event.

    python scripts/bench_gateway.py                                     # 64 and 256 streams
    python scripts/bench_gateway.py --itl-ms 20 --tokens 64 --streams 64
    python scripts/bench_gateway.py --workers 1 2                       # one process, and two workers
    python scripts/bench_gateway.py --sessions 10 1000 100000           # turn time by open sessions
    python scripts/bench_gateway.py --vllm-router COMMAND --litellm COMMAND

Backend, proxies and this client are processes of their own. Targets take turns in ``--rounds`` rounds,
and what is printed is the median of the rounds with the least and the most. CPU time is that of the
target's processes, which a busy machine does not change: one core carries 1e6 / (us an event) events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

START_S = 120.0
WARM_S = 0.5
KEY = "sk-bench-key-for-a-local-measurement-0123456789"
"""What another proxy has to accept."""
HERE = Path(__file__).parent
LITELLM = """model_list: [{{model_name: fake, litellm_params: {{model: openai/fake,
  api_base: "http://127.0.0.1:{port}/v1", api_key: none}}}}]
"""
ENVIRONMENT = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
ROW = (
    "requests_per_s",
    "events_per_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "total_p50_ms",
    "cpu_us_per_event",
    "main_us_per_request",
)


@dataclass
class TargetTimes:
    """Times of one target in one round, seconds."""

    ttft_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    errors: int = 0
    events: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    main_cpu_s: float = 0.0
    """Of the process that was started, without its children."""

    def row(self) -> dict[str, float]:
        ttft, total = (np.percentile(x, [50, 99]) * 1e3 for x in (self.ttft_s, self.total_s))
        return {
            "requests_per_s": len(self.total_s) / self.wall_s,
            "events_per_s": self.events / self.wall_s,
            "ttft_p50_ms": float(ttft[0]),
            "ttft_p99_ms": float(ttft[1]),
            "total_p50_ms": float(total[0]),
            "total_p99_ms": float(total[1]),
            "cpu_us_per_event": self.cpu_s / max(self.events, 1) * 1e6,
            "main_us_per_request": self.main_cpu_s / len(self.total_s) * 1e6,
            "errors": self.errors,
        }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def request(session: str, turn: int, *, stream: bool) -> bytes:
    content = f"{session} turn {turn} " + "lorem ipsum " * 100
    body = {
        "model": "fake",
        "stream": stream,
        "messages": [{"role": "user", "content": content}],
    }
    raw = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {KEY}\r\nx-session-id: {session}\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


class StreamClient(asyncio.Protocol):
    """One client: one connection, one session, one stream after another."""

    def __init__(self, name: str, until: float, sample: TargetTimes) -> None:
        self.name, self.until, self.sample = name, until, sample
        self.done = asyncio.get_running_loop().create_future()
        self.turn = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.tail, self.first_s, self.ok = b"", 0.0, True
        self.began_s = time.perf_counter()
        self.transport.write(request(self.name, self.turn, stream=True))
        self.turn += 1

    def data_received(self, data: bytes) -> None:
        if not self.tail:
            self.ok = data.startswith(b"HTTP/1.1 200")
        self.sample.events += data.count(b"data: ")
        if not self.first_s and b"data: " in data:
            self.first_s = time.perf_counter()
        self.tail = (self.tail + data)[-5:]
        if self.tail == b"0\r\n\r\n":
            self.end()

    def end(self) -> None:
        self.sample.errors += not (self.ok and self.first_s)
        self.sample.ttft_s.append(self.first_s - self.began_s)
        self.sample.total_s.append(time.perf_counter() - self.began_s)
        if time.perf_counter() < self.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.sample.errors += self.tail != b"0\r\n\r\n"
        self.done.set_result(None)


async def clients(port: int, number: int, seconds: float) -> TargetTimes:
    sample = TargetTimes()
    loop = asyncio.get_running_loop()
    started = time.perf_counter()

    async def one(index: int) -> None:
        name = f"bench-{index}"
        await asyncio.sleep(index / number * min(seconds / 4, 0.5))  # not all at once
        _, client = await loop.create_connection(
            lambda: StreamClient(name, started + seconds, sample), "127.0.0.1", port
        )
        await client.done

    await asyncio.gather(*(one(index) for index in range(number)))
    sample.wall_s = time.perf_counter() - started
    return sample


def cpu_s(pid: int) -> tuple[float, float]:
    """Of a process alone, and with its children."""
    top = psutil.Process(pid)
    times = [process.cpu_times() for process in (top, *top.children(recursive=True))]
    each = [found.user + found.system for found in times]
    return each[0], sum(each)


@dataclass
class BenchTarget:
    name: str
    port: int
    pid: int


def measure(target: BenchTarget, number: int, seconds: float) -> dict[str, float]:
    uvloop.run(clients(target.port, number, WARM_S))
    main_s, all_s = cpu_s(target.pid)
    sample = uvloop.run(clients(target.port, number, seconds))
    main_after_s, all_after_s = cpu_s(target.pid)
    sample.main_cpu_s, sample.cpu_s = main_after_s - main_s, all_after_s - all_s
    return sample.row()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)  # a process that starts does not say when it listens: try again
        else:
            return
    raise SystemExit(f"nothing listens on port {port} after {START_S:g} s")


@contextlib.contextmanager
def running(name: str, command: list[str], port: int) -> Iterator[BenchTarget]:
    quiet = None if name.startswith(("backend", "gateway")) else subprocess.DEVNULL
    process = subprocess.Popen(
        command,
        stdout=quiet,
        stderr=quiet,
        env=ENVIRONMENT,
    )
    try:
        wait_for(port, process)
        yield BenchTarget(name, port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def targets(options: argparse.Namespace) -> Iterator[list[BenchTarget]]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        backend = [
            *(sys.executable, str(HERE / "bench_backend.py"), "--port", str(port)),
            *("--tokens", str(options.tokens), "--ttft-ms", str(options.ttft_ms)),
            *("--itl-ms", str(options.itl_ms)),
        ]
        found = [stack.enter_context(running("backend", backend, port))]
        for name, command in commands(options, port, stack).items():
            at = free_port()
            command = [text.format(port=at) for text in command]
            found.append(stack.enter_context(running(name, command, at)))
        yield found


def commands(
    options: argparse.Namespace, backend: int, stack: contextlib.ExitStack
) -> dict[str, list[str]]:
    url = f"http://127.0.0.1:{backend}"
    serve = [
        *(sys.executable, "-c", "from marsbench.cli import main; main()", "serve", "-u", url),
        *("--port", "{port}", "-s", options.system, *options.serve),
    ]
    found = {
        "gateway" if number == 1 else f"gateway-{number}": [*serve, "--workers", str(number)]
        for number in options.workers
    }
    if options.vllm_router:
        found["vllm-router"] = [
            *(options.vllm_router, "--worker-urls", url, "--policy", "round_robin"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ]
    if options.litellm:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "config.yaml").write_text(LITELLM.format(port=backend))
        found["litellm"] = [
            *(options.litellm, "--config", str(folder / "config.yaml")),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ]
    return found


def bench_streams(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with targets(options) as found:
        for number in options.streams:
            seen: dict[str, list[dict[str, float]]] = {target.name: [] for target in found}
            for _ in range(options.rounds):
                for target in found:
                    seen[target.name].append(measure(target, number, options.seconds))
            for name, rounds in seen.items():
                row: dict[str, Any] = {"streams": number, "target": name, "itl_ms": options.itl_ms}
                for key in ROW:
                    values = [one[key] for one in rounds]
                    row[key] = float(np.median(values))
                    row[f"{key}_spread"] = [min(values), max(values)]
                row["errors"] = sum(one["errors"] for one in rounds)
                row["share"] = row["requests_per_s"] / np.median(
                    [one["requests_per_s"] for one in seen["backend"]]
                )
                rows.append(row)
                tell(row, rows)
    return rows


def tell(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    alone = next(r for r in rows if r["streams"] == row["streams"] and r["target"] == "backend")
    low, high = row["requests_per_s_spread"]
    print(
        f"{row['streams']:4d} streams  {row['target']:11s} {row['requests_per_s']:7.1f} requests/s "
        f"({low:.0f}-{high:.0f}), {row['share']:.2f} of bare, {row['events_per_s']:7.0f} events/s   "
        f"first token p50 {row['ttft_p50_ms']:6.1f} ({row['ttft_p50_ms'] - alone['ttft_p50_ms']:+.1f}) "
        f"p99 {row['ttft_p99_ms']:6.1f} ({row['ttft_p99_ms'] - alone['ttft_p99_ms']:+.1f}) ms   "
        f"{row['cpu_us_per_event']:6.1f} us CPU an event, {row['main_us_per_request']:6.0f} us a request "
        f"in the main process   errors {row['errors']:.0f}",
        flush=True,
    )


async def open_sessions(port: int, first: int, number: int, at_once: int = 32) -> None:
    """Sessions of one turn that do not end."""
    names = iter(range(first, first + number))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for name in names:
            writer.write(request(f"open-{name}", 0, stream=False))
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(size)
        writer.close()

    await asyncio.gather(*(work() for _ in range(at_once)))


def bench_sessions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and CPU of turns beside more and more open sessions."""
    rows = []
    opened = 0
    with targets(options) as found:
        gateway = found[1]
        for number in sorted(options.sessions):
            uvloop.run(open_sessions(gateway.port, opened, number - opened))
            opened = number
            seen = [measure(gateway, 10, options.seconds) for _ in range(options.rounds)]
            cpu_ms = [
                one["cpu_us_per_event"] * one["events_per_s"] / one["requests_per_s"] / 1e3
                for one in seen
            ]
            row = {
                "open_sessions": number,
                "turn_p50_ms": float(np.median([one["total_p50_ms"] for one in seen])),
                "ttft_p50_ms": float(np.median([one["ttft_p50_ms"] for one in seen])),
                "cpu_ms_per_turn": float(np.median(cpu_ms)),
                "resident_mib": psutil.Process(gateway.pid).memory_info().rss / (1 << 20),
            }
            rows.append(row)
            print(
                f"{number:7d} open sessions: turn p50 {row['turn_p50_ms']:.1f} ms, first token p50 "
                f"{row['ttft_p50_ms']:.1f} ms, {row['cpu_ms_per_turn']:.2f} ms of CPU a turn "
                f"({min(cpu_ms):.2f}-{max(cpu_ms):.2f}), {row['resident_mib']:.0f} MiB",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="per target and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=1.0)
    parser.add_argument("--system", default="vllm")
    parser.add_argument("--streams", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--sessions", type=int, nargs="*", default=[], help="open sessions")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="a gateway for each")
    parser.add_argument("--serve", nargs="*", default=[], help="further options of marsbench serve")
    parser.add_argument("--vllm-router", metavar="COMMAND", help="measure this vllm-router, too")
    parser.add_argument("--litellm", metavar="COMMAND", help="measure this LiteLLM proxy, too")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    rows = bench_sessions(options) if options.sessions else bench_streams(options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
