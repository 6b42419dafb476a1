"""MARS inside a real SGLang server on the CPU, joined to the control plane in the driver."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import aiohttp
import pytest

from marsbench.arrival.base import ArrivalPlan
from marsbench.core import Session, ToolCall, Turn, to_ps
from marsbench.engine.kind import Opening
from marsbench.engine.live.engine import LiveEngine
from marsbench.engine.live.kinds.sglang import Sglang
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.supervisor import descendants
from marsbench.errors import EngineError
from marsbench.events import Kind
from marsbench.experiment.wiring import Setup, plan_cell, system_named
from marsbench.records import EventLog
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

# Three processes import for half a minute of CPU time before a server serves.
pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1800)]

FLAGS = {"num_blocks": 5120, "block_size": 1, "max_num_seqs": 8, "max_model_len": 4096}
SETUP = Setup("sglang", "tiny-cpu", tool_cores=2, tools="recorded", engine_flags=FLAGS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One server at a time: for stock SGLang, then for MARS."""
    from marsbench.engine.sglang.runtime import installed_version

    if installed_version() is None:
        pytest.skip("SGLang is not installed")
    options = LiveOptions(
        python=sys.executable, device="cpu", layers=2, warm_up_turns=2, start_timeout_s=1200.0
    )
    opening = Opening("test", tmp_path_factory.mktemp("logs"))
    with LiveEngine(Sglang(), options, opening) as engine:
        yield engine


def tool(seconds: float) -> ToolCall:
    return ToolCall("pytest", "test", seconds)


def play(engine, system, sessions, times_s, tools=None, **params):
    """A cell on the server: its log and what the engine told of it."""
    arrivals = ArrivalPlan(tuple(to_ps(at_s) for at_s in times_s))
    plan = plan_cell(SETUP, system_named(system), params, sessions, arrivals, seed=0)
    log = EventLog()
    outcome = engine.run(replace(plan, tools=tools or plan.tools), log)
    return log, outcome.measured["live"]


def flood(engine, system, **params):
    """Cached tokens of two agents' second turns: while their tools run, another fills the memory
    that they leave, twice."""
    agents = [
        Session(f"a{k}", (Turn(1100, 8, tools=(tool(12.0),)), Turn(100, 8))) for k in range(2)
    ]
    turns = Turn(2700, 8, tools=(tool(0.1),)), Turn(2700, 8, drop_context_to=1)
    log, told = play(engine, system, [*agents, Session("o", turns)], [0.0, 0.0, 4.0], **params)
    assert build_tables(log).sessions["status"].tolist() == ["ok"] * 3
    assert told["failed_turns"] == 0
    turns = build_tables(log).turns
    agents = turns[(turns["turn_index"] == 1) & (turns["session"] < 2)]
    return log, told, agents["cached_tokens"].tolist()


def counters(engine) -> dict[str, float]:
    """The plug-in's own metrics."""
    url = engine._running[1].command.url
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        page = reply.read().decode()
    found = re.findall(
        r"^marsbench:(\w+?)(?:_total)?(?:\{(.*)\})? ([0-9.e+-]+)$", page, re.MULTILINE
    )
    return {f"{name} {labels}".strip(): float(value) for name, labels, value in found}


def flush(engine) -> bool:
    """SGLang empties its cache only if nothing waits and nothing runs: soon after the last turn."""
    request = urllib.request.Request(f"{engine._running[1].command.url}/flush_cache", method="POST")
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status == 200
        except urllib.error.HTTPError:
            time.sleep(0.1)  # its scheduler has yet to look round: nobody tells when
    return False


def test_a_flood_takes_the_agents_context_from_stock_sglang(engine):
    """Without a policy the least recently used contexts go, and those are the agents'."""
    _, told, cached = flood(engine, "sglang")
    assert cached == [0, 0]
    assert "link" not in told


def test_mars_keeps_it(engine):
    """Both agents find all that they had; the pins were told, and none is left; no message is lost.
    Another run on the same server begins anew.

    By itself MARS weighs a prefill against the wait, and the tiny model's prefills are short: it is
    told to keep contexts for a minute.
    """
    log, told, cached = flood(engine, "mars", fixed_ttl_s=60.0)
    assert cached == [1107, 1107]
    kinds = [Kind(kind).name for kind in log.to_numpy()[:, 1]]
    assert kinds.count("GPU_SCHED_FIRST") == kinds.count("GPU_END") == 6
    assert kinds.count("KV_PIN") == kinds.count("KV_UNPIN") >= 2
    assert told["link"]["engine_events"] >= 6 * 3
    log, again = play(
        engine, "mars", [Session("s", (Turn(100, 8), Turn(50, 4)))], [0.0], fixed_ttl_s=60.0
    )
    assert build_tables(log).turns["cached_tokens"].tolist() == [0, 107]
    for link in (told["link"], again["link"]):
        assert link["lost_messages"] == link["damaged_messages"] == link["outages"] == 0
    found = counters(engine)
    assert found["pins"] == sum(n for name, n in found.items() if name.startswith("unpins")) >= 2
    assert found["pinned_blocks"] == 0
    assert found['turns how="finished"'] >= 8


def test_turns_that_are_broken_off_leave_nothing(engine):
    """Clients vanish while their turns run, prefill and wait: all leave the engine as aborted, and
    the server is as empty as before."""
    play(engine, "mars", [Session("s", (Turn(100, 8),))], [0.0], fixed_ttl_s=60.0)
    url = engine._running[1].command.url
    before = counters(engine)

    async def vanish(session, prompt_tokens):
        body = {
            "model": "marsbench", "prompt": [300 + session] * prompt_tokens, "max_tokens": 1500,
            "ignore_eos": True, "stream": True, "session_id": f"gone/{session}",
        }  # fmt: skip
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{url}/v1/completions", json=body) as reply,
        ):
            async for _ in reply.content.iter_any():
                return

    async def all_of_them():
        tasks = [asyncio.create_task(vanish(k, 1500)) for k in range(4)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    log, _ = play(engine, "mars", [Session("s", (Turn(3000, 8),))], [0.0], fixed_ttl_s=60.0)
    assert build_tables(log).sessions["status"].tolist() == ["ok"]
    aborted = 'turns how="aborted"'
    assert counters(engine)[aborted] - before.get(aborted, 0) == 4
    assert flush(engine)


def test_flushing_drops_pins(engine):
    """A context that is kept when the cache is emptied is not found afterwards, and not held."""
    flushed = []

    class Flushing(Recorded):
        def start(self, handle, demand, now_ps):
            flushed.append(flush(engine))
            super().start(handle, demand, now_ps)

    turns = (Turn(600, 8, tools=(tool(1.0),)), Turn(100, 8))
    log, _ = play(engine, "mars", [Session("s", turns)], [0.0], Flushing(), fixed_ttl_s=60.0)
    assert flushed == [True]
    assert build_tables(log).turns["cached_tokens"].tolist() == [0, 0]
    assert counters(engine)["pinned_blocks"] == 0


def test_a_server_that_dies_in_the_middle(engine):
    """A scheduler killed while a tool runs fails its cell in one line with the log's place; the next
    cell gets a new server. (Keep this test last.)"""

    class Killing(Recorded):
        def start(self, handle, demand, now_ps):
            for pid in descendants(engine._running[1].pid):
                os.kill(pid, signal.SIGKILL)
            super().start(handle, demand, now_ps)

    sessions = [Session("s", (Turn(600, 8, tools=(tool(1.0),)), Turn(100, 8)))]
    with pytest.raises(EngineError, match=r"ended with status \d+ in the middle") as failed:
        play(engine, "mars", sessions, [0.0], Killing(), fixed_ttl_s=60.0)
    assert "\n" not in str(failed.value)
    assert engine._running is None
