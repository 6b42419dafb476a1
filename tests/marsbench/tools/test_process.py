"""Tool processes burn what they are told to, where they are told to, and never outlive the run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from marsbench.core import PS_PER_S, to_ps
from marsbench.errors import ConfigError, EngineError
from marsbench.tools.base import ToolDemand
from marsbench.tools.executor import Execution, ToolExecutor, tool_core_ids
from marsbench.tools.process import Process


def demand(
    cpu_s: float,
    *,
    cores: float = 1.0,
    io_s: float = 0.0,
    timeout_s: float | None = None,
    nice: int = 0,
    after_s: float = 0.0,
) -> ToolDemand:
    """A tool call in seconds."""
    timeout_ps = None if timeout_s is None else to_ps(timeout_s)
    return ToolDemand(
        "pytest", "test", to_ps(cpu_s), round(cores * 1000), to_ps(io_s), timeout_ps,
        nice, to_ps(after_s),
    )  # fmt: skip


def run(*demands: ToolDemand, cores: int = 0) -> tuple[list[Execution], float, list[int]]:
    """Run calls at once; executions, wall seconds without start-up, and the processes used."""

    async def go():
        tools = Process(cores, prestarted=len(demands))
        await tools.open()
        try:
            pids = [worker._process.pid for worker in tools._workers]
            start = time.monotonic()
            executions = await asyncio.gather(*(tools.run(each) for each in demands))
            return executions, time.monotonic() - start, pids
        finally:
            await tools.close()

    return asyncio.run(go())


def running(group: int) -> bool:
    """Whether any process of a group is alive."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            return True
    return False


def test_burns_the_recorded_work():
    """0.2 core-seconds are used, to a tenth, and take at least as long on one core."""
    (done,), wall_s, _ = run(demand(0.2))
    assert not done.timed_out
    assert done.cpu_ps / PS_PER_S == pytest.approx(0.2, rel=0.1)
    assert wall_s >= 0.2


def test_work_is_shared_among_the_call_s_cores():
    """0.2 core-seconds on two cores: the same CPU time, each of the two processes half of it."""
    (done,), _, _ = run(demand(0.2, cores=2))
    assert done.cpu_ps / PS_PER_S == pytest.approx(0.2, rel=0.2)


def test_less_than_a_core():
    """0.05 core-seconds on a quarter of a core take at least 0.2 s."""
    (done,), wall_s, _ = run(demand(0.05, cores=0.25))
    assert done.cpu_ps / PS_PER_S == pytest.approx(0.05, rel=0.3)
    assert wall_s >= 0.17


def test_waiting_takes_no_core():
    """0.15 s of I/O are waited for and cost no CPU time."""
    (done,), wall_s, _ = run(demand(0.0, io_s=0.15))
    assert done == Execution(0, timed_out=False)
    assert 0.15 <= wall_s < 2.0


def test_timeout_kills_all_of_it():
    """A call of two processes that would burn 20 s is killed after 0.3 s, both of them; what they
    used until then is on record, and another call goes on."""
    (killed, fine), wall_s, pids = run(demand(20, cores=2, timeout_s=0.3), demand(0.05))
    assert killed.timed_out
    assert 0 < killed.cpu_ps <= to_ps(2 * wall_s)
    assert not fine.timed_out
    assert wall_s < 10
    assert not any(running(pid) for pid in pids)


def nicenesses(group: int) -> list[int]:
    """Of the processes of a group other than its leader."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and int(stat.parent.name) != group:
            found.append(int(fields[16]))  # proc(5): nice
    return found


@pytest.mark.parametrize("cores", [1, 2])
def test_becomes_nice_when_its_share_is_used_up(cores):
    """A call of 20 core-seconds runs at niceness 7 once 0.1 of them are used, each of its processes;
    the worker itself stays at 0, so that the next call starts there again."""

    async def go() -> None:
        tools = Process(prestarted=1)
        await tools.open()
        (worker,) = tools._workers
        group = worker._process.pid
        call = asyncio.create_task(tools.run(demand(20, cores=cores, nice=7, after_s=0.1)))
        try:
            async with asyncio.timeout(20):
                while nicenesses(group) != [7] * cores:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.01)
            assert os.getpriority(os.PRIO_PROCESS, group) == os.getpriority(os.PRIO_PROCESS, 0)
        finally:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await tools.close()

    asyncio.run(go())


def test_nice_work_is_counted_and_short_calls_stay_as_they_are():
    """0.2 core-seconds, half of them nice, are 0.2; a call within its share has no process of its
    own to make nicer."""
    (half, short), _, _ = run(demand(0.2, nice=5, after_s=0.1), demand(0.05, nice=19, after_s=0.05))
    assert half.cpu_ps / PS_PER_S == pytest.approx(0.2, rel=0.2)
    assert short.cpu_ps / PS_PER_S == pytest.approx(0.05, rel=0.3)


def test_pinned_to_the_tool_cores(monkeypatch):
    """With one tool core two calls of 0.15 core-seconds share it: together they take 0.3 s."""
    (one, two), wall_s, _ = run(demand(0.15), demand(0.15), cores=1)
    assert wall_s >= 0.3
    assert (one.cpu_ps + two.cpu_ps) / PS_PER_S == pytest.approx(0.3, rel=0.15)


def test_cores_that_do_not_exist():
    """More tool cores than the machine has is an error that says how many there are; 0 pins to
    none, and the last ones are taken."""
    allowed = sorted(os.sched_getaffinity(0))
    with pytest.raises(ConfigError, match=f"gives us {len(allowed)}; use --tool-cores"):
        tool_core_ids(len(allowed) + 1)
    assert tool_core_ids(0) == ()
    assert tool_core_ids(1) == (allowed[-1],)


def test_nothing_is_left():
    """After ``close`` no worker is left, not even one in the middle of a call."""

    async def go() -> list[int]:
        tools = Process(prestarted=1)
        await tools.open()
        call = asyncio.create_task(tools.run(demand(20, cores=2)))
        await asyncio.sleep(0.2)
        pids = [worker._process.pid for worker in tools._workers]
        assert all(running(pid) for pid in pids)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await tools.close()
        return pids

    pids = asyncio.run(go())
    assert pids
    # SIGKILL is sent to the whole group, but a busy machine lets a burner die a little later.
    patience = time.monotonic() + 5  # the call's own work would take 10 s
    while any(running(pid) for pid in pids) and time.monotonic() < patience:
        time.sleep(0.01)
    assert not any(running(pid) for pid in pids)


def test_worker_that_dies_is_an_error():
    """A worker killed from outside is no tool result: the call raises."""

    async def go() -> None:
        tools = Process(prestarted=1)
        await tools.open()
        call = asyncio.create_task(tools.run(demand(20)))
        await asyncio.sleep(0.1)
        (worker,) = tools._workers
        os.kill(worker._process.pid, 9)
        try:
            await call
        finally:
            await tools.close()

    with pytest.raises(EngineError, match="ended by itself"):
        asyncio.run(go())


def test_a_stopped_worker_fails_its_call():
    """A worker that is stopped has work left and uses no CPU time: the call ends with one line that
    names the tool, and the worker is gone. A call that only waits for the core goes on."""

    async def go() -> list[int]:
        tools = Process(prestarted=1, still_s=0.5)
        await tools.open()
        (worker,) = tools._workers
        pid = worker._process.pid
        call = asyncio.create_task(tools.run(demand(20)))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                with pytest.raises(EngineError, match=r"tool 'pytest' .* no CPU time for 0.5 s"):
                    await call
            return [pid] if running(pid) else []
        finally:
            await tools.close()

    assert asyncio.run(go()) == []


def test_slow_calls_are_no_stopped_ones():
    """A call that takes five times as long as a stopped one is waited for, and goes on using CPU time,
    comes to its end: so does one that waits for I/O."""

    async def go() -> list[Execution]:
        tools = Process(prestarted=2, still_s=0.2)
        await tools.open()
        try:
            return await asyncio.gather(
                tools.run(demand(0.5, cores=0.5)), tools.run(demand(0.0, io_s=0.6))
            )
        finally:
            await tools.close()

    burnt, waited = asyncio.run(go())
    assert burnt.cpu_ps >= to_ps(0.45)
    assert waited == Execution(0, timed_out=False)


def test_it_is_an_executor():
    """It offers what the live driver asks for."""
    assert isinstance(Process(), ToolExecutor)
