"""Drills for an operator: what a gateway does when its clients misbehave, measured.

    python scripts/drills.py ghosts [--seconds 30] [--unbounded]

``ghosts``: clients ask for one turn, are told to run a tool, and are never heard of again; others work
on. How many turns a second do these get, and how long does one wait at most? ``--unbounded`` lets an
inferred call count for as long as its session is open, as the gateway did before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import uvicorn

from marsbench.core import PolicyContext
from marsbench.gateway.app import Gateway
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.control import guesses
from marsbench.gateway.http.server import make_server
from marsbench.gateway.settings import GatewaySettings
from marsbench.registry import load

GHOSTS, AGENTS, TOOL_CORES, SESSION_TURNS = 40, 16, 4, 2
TTFT_S, TOOL_S = 0.1, 0.2
HAUNTED_S = 5.0
"""The ghosts come after so much time, in which the gateway has learned how long calls take."""
CALL = (("call", "bash", '{"command": "make"}'),)


def socket_of() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen(256)
    return found


@contextlib.asynccontextmanager
async def gateway_of(system: str) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway before a fake backend whose every reply asks for a tool call."""
    backend = FakeBackend(plan=lambda _n, _b: FakeAnswer(calls=CALL, ttft_s=TTFT_S))
    sockets = socket_of(), socket_of()
    urls = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    quiet = uvicorn.Config(backend, lifespan="off", ws="none", log_level="critical")
    settings = GatewaySettings(backends=(urls[0],), system=system, tool_cores=TOOL_CORES)
    context = PolicyContext(4000, 16, 8192, 256, TOOL_CORES, 10_000.0)
    gateway = Gateway(settings, load("SYSTEMS", system), context)
    servers = [uvicorn.Server(quiet), make_server(gateway)]
    running = [
        asyncio.create_task(server.serve(sockets=[sock]))
        for server, sock in zip(servers, sockets, strict=True)
    ]
    while not all(server.started for server in servers):  # noqa: ASYNC110 - servers tell nobody
        await asyncio.sleep(0.01)
    try:
        yield gateway, urls[1]
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*running)


async def haunt(seconds: float, system: str) -> None:
    turns: list[tuple[float, float]] = []
    """When each turn of an agent ended, and how long it took."""
    async with gateway_of(system) as (gateway, url), aiohttp.ClientSession() as client:

        async def turn(name: str, number: int) -> None:
            messages = [{"role": "user", "content": f"{name} " * 20}] * (number + 1)
            body = {"model": "m", "messages": messages, "session_id": name}
            async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()

        async def agent(number: int, until: float) -> None:
            task = 0
            while time.monotonic() < until:
                for index in range(SESSION_TURNS):
                    began = time.monotonic()
                    await turn(f"agent-{number}-{task}", index)
                    turns.append((time.monotonic(), time.monotonic() - began))
                    if time.monotonic() > until:
                        return
                    await asyncio.sleep(TOOL_S)
                await client.post(f"{url}/v1/sessions/agent-{number}-{task}/end")
                task += 1

        async def come_and_vanish() -> float:
            """When the first ghost came."""
            await asyncio.sleep(HAUNTED_S)
            began = time.monotonic()
            ghosts = [asyncio.create_task(turn(f"ghost-{k}", 0)) for k in range(GHOSTS)]
            await asyncio.wait(ghosts, timeout=seconds - HAUNTED_S)
            for ghost in ghosts:
                ghost.cancel()
            await asyncio.gather(*ghosts, return_exceptions=True)
            return began

        until = time.monotonic() + seconds
        agents = [asyncio.create_task(agent(k, until)) for k in range(AGENTS)]
        since = await come_and_vanish()
        await asyncio.wait(agents, timeout=max(until - time.monotonic(), 0))
        for work in agents:
            work.cancel()
        await asyncio.gather(*agents, return_exceptions=True)
        before = sum(ended < since for ended, _ in turns) / HAUNTED_S
        after = [wait for ended, wait in turns if ended >= since]
        print(
            f"{system}: {before:.1f} turns/s before the ghosts, {len(after) / (until - since):.1f} "
            f"beside {GHOSTS} of them, longest {max(after, default=seconds):.1f} s; "
            f"{gateway.control.guesses.overdue} calls overdue, {gateway.control.lent} places lent"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("drill", choices=["ghosts"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--system", default="mars")
    parser.add_argument("--unbounded", action="store_true")
    options = parser.parse_args()
    if options.unbounded:
        guesses.START_S = guesses.LEAST_S = 1e6
    asyncio.run(haunt(options.seconds, options.system))


if __name__ == "__main__":
    main()
