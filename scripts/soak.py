"""A soak: agents for half an hour beside everything that goes wrong, and nothing may be left over.

    python scripts/soak.py                          # 30 minutes at 64 agents
    python scripts/soak.py --seconds 120 --agents 16

A gateway (a process of its own, ``--system``) before two fake backends. Agents run sessions of some turns
with tool calls between. Beside them: clients that vanish in the middle of a stream, sessions that never
come back, tools that hang and never give their slot back, and every ``--restart-s`` a backend whose
connections all break and that is gone for three seconds. A turn that fails is asked again, as agents do.

At the end every agent finishes its session, and what the gateway and the backends say of themselves must
be nothing: no session, place, tool slot, turn or body, no KV block held. Exit status 1 and a line for each
thing that is left, lost or grown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend

CALL = (("call", "bash", '{"command": "make test"}'),)
TURNS = (2, 9)
TOOL_S = (0.2, 3.0)
TTFT_S, ITL_S, TOKENS = 0.05, 0.02, 20
BLOCKS = 3000
VANISH, FORGET, HANG = 0.02, 0.01, 0.02
"""Of a turn: its client leaves in the middle; its session never comes back; its tool keeps its slot."""
SESSION_IDLE_S, CALL_IDLE_S, LEASE_S = 20, 30, 5.0
GONE_S = 3.0
SAMPLES = 10
"""Rows of the table."""
GROWTH_MIB = 16.0
"""More memory at the end than after the first third is a leak."""
LEFT = (
    "sessions", "active_sessions", "pending_turns", "turns_in_flight", "tools_running", "tools_queued",
    "body_bytes", "failed_steps_total",
)  # fmt: skip


@dataclass
class SoakCounts:
    """What happened since the last row of the table."""

    turns_s: list[float] = field(default_factory=list)
    sessions: int = 0
    retries: int = 0
    vanished: int = 0
    forgotten: int = 0
    hung: int = 0


class Restarting:
    """A fake backend that can break all its connections and come back on its port."""

    def __init__(self) -> None:
        def plan(_number: int, body: dict[str, Any]) -> FakeAnswer:
            calls = () if body["messages"][-1]["content"] == "last" else CALL
            return FakeAnswer(("word ",) * TOKENS, calls, ttft_s=TTFT_S, itl_s=ITL_S)

        self.app = FakeBackend(plan=plan, keep=False, num_blocks=BLOCKS)
        self.restarts = 0
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]

    async def start(self) -> None:
        config = uvicorn.Config(
            self.app, port=self.port, ws="none", lifespan="off", log_level="critical"
        )
        self.server = uvicorn.Server(config)
        config.load()
        self.server.lifespan = config.lifespan_class(config)
        await self.server.startup()

    async def kill(self) -> None:
        for listener in self.server.servers:
            listener.close()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(*self.server.server_state.tasks, return_exceptions=True)

    async def restart_now_and_then(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self.kill()
            self.restarts += 1
            await asyncio.sleep(GONE_S)
            await self.start()


class SoakAgent:
    """One agent after another's session, for as long as the soak lasts."""

    def __init__(self, number: int, soak: Soak) -> None:
        self.number = number
        self.soak = soak
        self.dice = random.Random(number)

    async def run(self) -> None:
        task = 0
        while not self.soak.over:
            await self.session(f"agent-{self.number}-{task}")
            task += 1

    async def session(self, name: str) -> None:
        soak, dice = self.soak, self.dice
        turns = dice.randint(*TURNS)
        answered = 0
        messages = [{"role": "user", "content": f"{name} " * 100}]
        for turn in range(turns):
            fate = dice.random()
            if fate < VANISH:
                await self.vanish(name, messages)
                soak.seen.vanished += 1
                return
            last = turn == turns - 1 or soak.over
            text = await self.turn(
                name, [*messages, {"role": "user", "content": "last"}] if last else messages
            )
            answered += 1
            if last:
                break
            if fate < VANISH + FORGET:
                soak.seen.forgotten += 1
                return
            messages += [
                {"role": "assistant", "content": text},
                {"role": "tool", "tool_call_id": "call", "content": "ok " * 50},
            ]
            await self.tool(name, hangs=fate > 1 - HANG)
        status, told = await soak.post(f"/v1/sessions/{name}/end", {})
        if status != 200:
            soak.faults.append(f"{name}: lost after {answered} turns: {status} {told}")
        elif told["turns"] < answered:
            soak.faults.append(f"{name}: the gateway knows {told['turns']} of {answered} turns")
        soak.seen.sessions += 1

    async def turn(self, name: str, messages: list[dict[str, str]]) -> str:
        """Until it has been answered well: agents ask again."""
        while True:
            began = time.monotonic()
            try:
                text = await self.ask(name, messages)
            except (aiohttp.ClientError, BrokenTurnError):
                self.soak.seen.retries += 1
                await asyncio.sleep(0.2)
            else:
                self.soak.seen.turns_s.append(time.monotonic() - began)
                return text

    async def ask(self, name: str, messages: list[dict[str, str]]) -> str:
        body = {"model": "fake", "stream": True, "messages": messages, "session_id": name}
        async with self.soak.client.post("/v1/chat/completions", json=body) as answer:
            data = await answer.read()
            if answer.status != 200 or not data.endswith(b"data: [DONE]\n\n"):
                raise BrokenTurnError(answer.status)
            if answer.headers["x-session-id"] != name:
                self.soak.faults.append(f"{name}: became {answer.headers['x-session-id']}")
        return "word " * TOKENS

    async def vanish(self, name: str, messages: list[dict[str, str]]) -> None:
        """Leave in the middle of a stream, and never come back."""
        body = {"model": "fake", "stream": True, "messages": messages, "session_id": name}
        with contextlib.suppress(aiohttp.ClientError):
            async with self.soak.client.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                answer.close()

    async def tool(self, name: str, *, hangs: bool) -> None:
        """Half of the calls ask for a slot; one that hangs keeps it until its time is up."""
        took_s = self.dice.uniform(*TOOL_S)
        lease = None
        if hangs or self.dice.random() < 0.5:
            given = {"session_id": name, "name": "bash", "lease_s": LEASE_S}
            status, told = await self.soak.post("/v1/tools/acquire", given)
            if status != 200:
                self.soak.faults.append(f"{name}: no slot: {status} {told}")
                return
            lease = told["lease"]
        await asyncio.sleep(took_s)
        if hangs:
            self.soak.seen.hung += 1
        elif lease is not None:
            await self.soak.post("/v1/tools/release", {"lease": lease})


class BrokenTurnError(Exception):
    """A turn was not answered to its end."""


class Soak:
    """All of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.over = False
        self.seen = SoakCounts()
        self.faults: list[str] = []
        self.rows: list[dict[str, float]] = []
        self.backends = [Restarting(), Restarting()]

    async def run(self) -> None:
        options = self.options
        async with contextlib.AsyncExitStack() as stack:
            for backend in self.backends:
                await backend.start()
            url, self.process = await stack.enter_async_context(self.gateway())
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_read=600)
            self.client = await stack.enter_async_context(
                aiohttp.ClientSession(url, connector=connector, timeout=timeout)
            )
            chaos = [
                asyncio.create_task(backend.restart_now_and_then(options.restart_s * (1 + 0.3 * k)))
                for k, backend in enumerate(self.backends)
            ]
            agents = [asyncio.create_task(SoakAgent(k, self).run()) for k in range(options.agents)]
            for index in range(SAMPLES):
                await asyncio.sleep(options.seconds / SAMPLES)
                await self.sample((index + 1) / SAMPLES)
            self.over = True
            for task in chaos:
                task.cancel()
            _, unfinished = await asyncio.wait(agents, timeout=options.end_s)
            if unfinished:
                self.faults.append(f"{len(unfinished)} agents still wait for an answer")
            await self.nothing_is_left()
            self.look_at_rows()
            for task in [*agents, *chaos]:
                task.cancel()
            await asyncio.gather(*agents, *chaos, return_exceptions=True)
        for backend in self.backends:
            await backend.kill()

    @contextlib.asynccontextmanager
    async def gateway(self) -> AsyncIterator[tuple[str, psutil.Process]]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        upstreams = [text for b in self.backends for text in ("-u", f"http://127.0.0.1:{b.port}")]
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [
                *(sys.executable, "-c", "from marsbench.cli import main; main()", "serve"),
                *(*upstreams, "--port", str(port), "-s", self.options.system),
                *("--tool-cores", "4", "--session-idle", str(SESSION_IDLE_S)),
                *("--call-idle", str(CALL_IDLE_S), *self.options.serve),
            ],
            stderr=self.options.log.open("w") if self.options.log else subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            async with aiohttp.ClientSession() as client, asyncio.timeout(120):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with client.get(f"{url}/ready") as answer:
                            if answer.status == 200:
                                break
                    await asyncio.sleep(0.1)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self.client.post(path, json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def metrics(self) -> dict[str, float]:
        """The gateway's own, sums over labels."""
        async with self.client.get("/metrics") as answer:
            page = await answer.text()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                name = sample.name.removeprefix("marsbench_gateway_")
                found[name] = found.get(name, 0.0) + sample.value
        return found

    async def sample(self, share: float) -> None:
        seen, self.seen = self.seen, SoakCounts()
        told = await self.metrics()
        p50, p99 = np.percentile(seen.turns_s or [0.0], [50, 99])
        row = {
            "minute": share * self.options.seconds / 60,
            "turns": len(seen.turns_s),
            "p50_s": float(p50),
            "p99_s": float(p99),
            "sessions_ended": seen.sessions,
            "asked_again": seen.retries,
            "vanished": seen.vanished,
            "never_back": seen.forgotten,
            "hung_tools": seen.hung,
            "restarts": sum(backend.restarts for backend in self.backends),
            "open_sessions": told["sessions"],
            "places_lent": told["lent_places_total"],
            "resident_mib": self.process.memory_info().rss / (1 << 20),
            "descriptors": self.process.num_fds(),
        }
        self.rows.append(row)
        columns = " | ".join(
            f"{row[name]:.2f}" if name.endswith("_s") else f"{row[name]:.0f}" for name in row
        )
        if len(self.rows) == 1:
            print("| " + " | ".join(name.replace("_", " ") for name in row) + " |")
            print("|" + "---:|" * len(row))
        print(f"| {columns} |", flush=True)

    async def nothing_is_left(self) -> None:
        """Once silent sessions have been given up, there is nothing."""
        left: list[str] = []
        deadline = time.monotonic() + CALL_IDLE_S + self.options.end_s
        while time.monotonic() < deadline:
            told = await self.metrics()
            left = [f"{name} is {told[name]:g}" for name in LEFT if told[name]]
            left += [f"backend_turns is {told['backend_turns']:g}"] * bool(told["backend_turns"])
            for index, backend in enumerate(self.backends):
                if backend.app.held_blocks or backend.app.running:
                    left.append(f"backend {index} holds {backend.app.held_blocks} KV blocks")
            async with self.client.get("/v1/admin/sessions") as answer:
                total = (await answer.json(content_type=None))["total"]
            left += [f"{total} sessions are listed"] * bool(total)
            if not left:
                return
            await asyncio.sleep(0.5)
        self.faults += [f"left at the end: {text}" for text in left]

    def look_at_rows(self) -> None:
        """Memory and, of a long soak, latency do not grow."""
        first, last = self.rows[SAMPLES // 3], self.rows[-1]
        grown = last["resident_mib"] - first["resident_mib"]
        if grown > GROWTH_MIB:
            self.faults.append(f"memory grew by {grown:.0f} MiB")
        if not all(row["turns"] for row in self.rows):
            self.faults.append("a part of the soak saw no turn answered")
        if self.options.steady:
            early = float(np.median([row["p99_s"] for row in self.rows[1:4]]))
            late = float(np.median([row["p99_s"] for row in self.rows[-3:]]))
            if late > 1.5 * early:
                self.faults.append(f"p99 of turns went from {early:.2f} to {late:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--system", default="mars")
    parser.add_argument("--restart-s", type=float, default=45.0)
    parser.add_argument("--end-s", type=float, default=120.0, help="for the last turns to end")
    parser.add_argument("--steady", action="store_true", help="p99 may not grow by half")
    parser.add_argument("--serve", nargs="*", default=[], help="further options of marsbench serve")
    parser.add_argument("--log", type=Path, help="what the gateway writes to its standard error")
    parser.add_argument("--json", type=Path, help="write rows and faults there")
    options = parser.parse_args()
    soak = Soak(options)
    asyncio.run(soak.run())
    if options.json:
        options.json.write_text(
            json.dumps({"rows": soak.rows, "faults": soak.faults}, indent=1) + "\n"
        )
    for fault in soak.faults:
        print(fault, file=sys.stderr)
    raise SystemExit(bool(soak.faults))


if __name__ == "__main__":
    main()
