"""Tool containers, through docker-py's real client against a small engine on a Unix socket."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import warnings

import pytest
from docker_engine import Engine, running

docker = pytest.importorskip("docker")

from marsbench.core import PS_PER_S, to_ps  # noqa: E402
from marsbench.errors import ConfigError, EngineError  # noqa: E402
from marsbench.tools.base import ToolDemand  # noqa: E402
from marsbench.tools.docker import LABEL, Docker  # noqa: E402
from marsbench.tools.executor import ToolExecutor  # noqa: E402

# docker-py leaves the socket of each exec, and one that cannot connect, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def collect():
    """What docker-py leaves is collected here, where its warning is expected."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture
def engine(tmp_path):
    """A running engine."""
    with running(tmp_path / "docker.sock") as server:
        yield server


def tools(engine: Engine, **options) -> Docker:
    """The tool model on that engine."""
    url = f"unix://{engine.server_address}"
    return Docker(connect=lambda: docker.DockerClient(base_url=url, timeout=20), **options)


def demand(
    name="pytest",
    *,
    cpu_s=0.0,
    cores=1.0,
    io_s=0.0,
    timeout_s: float | None = None,
    nice=0,
    after_s=0.0,
) -> ToolDemand:
    """A tool call in seconds."""
    timeout_ps = None if timeout_s is None else to_ps(timeout_s)
    return ToolDemand(
        name, "test", to_ps(cpu_s), round(cores * 1000), to_ps(io_s), timeout_ps,
        nice, to_ps(after_s),
    )  # fmt: skip


def run(model: Docker, *demands: ToolDemand, at_once=True):
    """Open, run calls, close."""

    async def go():
        await model.open()
        try:
            if at_once:
                return await asyncio.gather(*(model.run(each) for each in demands))
            return [await model.run(each) for each in demands]
        finally:
            await model.close()

    return asyncio.run(go())


def test_burns_in_a_limited_container(engine):
    """0.2 core-seconds are burnt by the image's Python; the container has the call's CPU limit, the
    run's label, and is gone afterwards."""
    (done,) = run(tools(engine), demand(cpu_s=0.2, cores=1.5))
    assert not done.timed_out
    assert 0.2 <= done.cpu_ps / PS_PER_S < 0.6, "0.2 s of work and the start of two processes"
    (config,) = engine.created
    assert config["HostConfig"]["NanoCpus"] == 1_500_000_000
    assert config["HostConfig"]["Init"] is True
    assert list(config["Labels"]) == [LABEL]
    assert engine.containers == {}


def test_pinned_to_tool_cores(engine):
    """With one tool core containers may use that one only."""
    run(tools(engine, cores=1), demand(cpu_s=0.01))
    last = str(max(os.sched_getaffinity(0)))
    assert engine.created[0]["HostConfig"]["CpusetCpus"] == last


def test_containers_are_reused_one_call_at_a_time(engine):
    """Three calls one after the other share a container; two at once, or other limits, do not."""
    run(tools(engine), demand(), demand(), demand(), at_once=False)
    assert len(engine.created) == 1
    run(tools(engine), demand(io_s=0.3), demand(io_s=0.3), demand(cores=2))
    assert len(engine.created) == 4
    labels = {config["Labels"][LABEL] for config in engine.created}
    assert len(labels) == 2, "each run has its own label"


def test_a_nice_call_s_container_weighs_less_once_its_share_is_used_up(engine):
    """0.4 core-seconds, nice 10 after 0.1: the container's CPU shares become 110 (Linux's weight of
    that niceness) when 0.1 are used, and 1024 again for the next call; a short call changes nothing."""
    model = tools(engine)
    containers = []

    async def go():
        await model.open()
        try:
            await model.run(demand(cpu_s=0.02, nice=10, after_s=0.1))
            await model.run(demand(cpu_s=0.4, nice=10, after_s=0.1))
            containers.extend(engine.containers.values())
        finally:
            await model.close()

    asyncio.run(go())
    (container,) = containers
    (low, used_ns), (normal, _) = container.weights
    assert (low, normal) == (110, 1024)
    assert used_ns >= 0.1e9


def test_real_commands(engine, tmp_path):
    """A command set for a tool's name is what runs; its failure is the tool's, not ours."""
    target = tmp_path / "ran"
    commands = {"touch": ["touch", str(target)], "fail": ["false"]}
    touched, failed = run(tools(engine, commands=commands), demand("touch"), demand("fail"))
    assert target.exists()
    assert not touched.timed_out
    assert not failed.timed_out


def test_timeout_kills_the_container(engine):
    """A command of 60 s is killed at 0.4 s with its container; the next call gets a new one."""
    start = time.monotonic()
    model = tools(engine, commands={"sleep": ["sleep", "60"]})
    killed, fine = run(model, demand("sleep", timeout_s=0.4), demand(cpu_s=0.01), at_once=False)
    assert killed.timed_out
    assert not fine.timed_out
    assert time.monotonic() - start < 15
    assert len(engine.created) == 2
    assert engine.containers == {}


def test_image_is_pulled_or_named(engine):
    """An image that is not there is pulled; one that cannot be pulled is an error with its name."""
    engine.pullable.add("agent:tools")
    run(tools(engine, image="agent:tools"), demand())
    assert engine.created[0]["Image"] == "agent:tools"
    with pytest.raises(
        ConfigError, match=r"image nobody/nothing:1 .* cannot be pulled: pull access"
    ):
        run(tools(engine, image="nobody/nothing:1"), demand())


def test_image_without_python(engine):
    """If burning fails the run stops with the image's name and what it said, instead of recording
    tools that took no time."""
    engine.programs.remove("python3")
    with pytest.raises(EngineError, match=r"image python:3.11-slim .* needs python3: exec failed"):
        run(tools(engine), demand(cpu_s=0.1))
    assert engine.containers == {}


def test_no_engine(monkeypatch, tmp_path):
    """Where no container engine answers there is one line that says so, and what else to use."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(
        ConfigError, match=r"no container engine answers.*--tools process"
    ) as caught:
        run(Docker(), demand())
    assert "\n" not in str(caught.value)


def test_engine_that_goes_away(engine):
    """An engine error in the middle of a run stops it with the engine's words."""
    model = tools(engine)

    async def go():
        await model.open()
        try:
            await model.run(demand())
            engine.containers.clear()
            await model.run(demand())
        finally:
            await model.close()

    with pytest.raises(EngineError, match=r"tool model 'docker': .*No such container"):
        asyncio.run(go())


def test_it_is_an_executor():
    """It offers what the live driver asks for."""
    assert isinstance(Docker(), ToolExecutor)
