"""The fake server keeps the promises that other tests build on."""

from __future__ import annotations

import asyncio
import sys

import pytest
from aiohttp import ClientError, ClientSession

from marsbench.engine.live.fake_server import FAULTS, Behaviour, FakeServer, serving
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.metrics import parse_metrics
from marsbench.engine.live.server import ServerCommand, free_port, running


def complete(behaviour: Behaviour, *prompts: list[int], output: int = 1) -> FakeServer:
    """Send prompts one after the other."""

    async def go():
        server = FakeServer(behaviour)
        async with serving(server) as url, ClientSession() as session:
            for prompt in prompts:
                body = {"prompt": prompt, "max_tokens": output}
                async with session.post(f"{url}/v1/completions", json=body) as reply:
                    await reply.read()
            async with session.get(f"{url}/metrics") as reply:
                server.page = parse_metrics(await reply.read(), Vllm.metrics)
        return server

    return asyncio.run(go())


def test_prefix_cache_by_hand():
    """Blocks of 4. A prompt of 10 leaves two full blocks (the KV of its only output token is never
    computed). The same prompt again hits 8; a prompt of exactly 8 may hit 4 only, since its last
    token must be computed."""
    prompt = list(range(10))
    server = complete(Behaviour(block_size=4), prompt, prompt, prompt[:8])
    assert server.totals["hits"] == 0 + 8 + 4
    assert server.totals["queries"] == 28


def test_least_recently_used_blocks_go_first():
    """Room for 3 blocks of 4: A (2 blocks) and B (2 blocks) do not both fit, so A's first block, the
    oldest, is gone, and without it A hits nothing."""
    a, b = list(range(8)), list(range(100, 108))
    server = complete(Behaviour(block_size=4, num_blocks=3), [*a, 1], [*b, 1], [*a, 1], [*b, 1])
    assert server.totals["hits"] == 0


def test_metrics_page_is_vllms():
    """What it counts can be read like a real server's page."""
    server = complete(Behaviour(block_size=4, num_blocks=77), list(range(10)), output=3)
    assert (server.page.num_blocks, server.page.block_size) == (77, 4)
    assert (server.page.prompt_tokens, server.page.generated_tokens) == (10, 3)
    assert server.page.running == server.page.waiting == 0


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"silent"}))
def test_every_nth_request_fails(fault):
    """With ``fault_every`` 2 the second and fourth of four requests fail, whatever the fault."""
    behaviour = Behaviour(fault_every=2, fault=fault)

    async def go() -> list[bool]:
        outcomes = []
        async with serving(FakeServer(behaviour)) as url, ClientSession() as session:
            for _ in range(4):
                body = {"prompt": [1, 2, 3], "max_tokens": 4}
                try:
                    async with session.post(f"{url}/v1/completions", json=body) as reply:
                        text = await reply.read()
                        outcomes.append(reply.status == 200 and b"[DONE]" in text)
                except ClientError:
                    outcomes.append(False)
        return outcomes

    assert asyncio.run(go()) == [True, False, True, False]


def test_runs_as_a_program(tmp_path):
    """``python -m ...fake_server`` serves until it is stopped."""
    port = free_port()
    argv = (sys.executable, "-m", "marsbench.engine.live.fake_server", "--port", str(port))
    with running(ServerCommand(argv, f"http://127.0.0.1:{port}", "fake"), tmp_path / "log"):
        pass
    assert f"serving fake at http://127.0.0.1:{port}" in (tmp_path / "log").read_text()
