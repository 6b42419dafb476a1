"""Tool model ``docker``: tool calls as real commands in containers, with CPU limits.

Containers are kept warm and reused, one call in each at a time; a call is an ``exec``. By default it
burns the recorded core-seconds (the image needs ``python3``); ``commands`` names real commands.
Everything is labelled, and removed by label at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from marsbench.core import PS_PER_S
from marsbench.errors import ConfigError, EngineError
from marsbench.extras import require
from marsbench.tools import burner
from marsbench.tools.base import MILLI, WEIGHTS, ToolDemand
from marsbench.tools.executor import STILL_S, Execution, tool_core_ids, watched

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

LABEL = "marsbench.run"
IMAGE = "python:3.11-slim"
PS_PER_NS = 1000
API_TIMEOUT_S = 60
POLL_S = 0.05
"""Least time between two looks at what a call has used."""
MAX_THREADS = 64
"""Calls at once: docker-py blocks, so each call has a thread."""

Result = TypeVar("Result")


class Docker:
    """Runs each call in a container limited to the call's parallelism and to the tool cores.

    A call's niceness becomes its container's weight on the cores, lowered when it is due.
    """

    def __init__(
        self,
        cores: int = 0,
        *,
        image: str = IMAGE,
        commands: Mapping[str, Sequence[str]] | None = None,
        connect: Callable[[], DockerClient] | None = None,
        still_s: float = STILL_S,
    ) -> None:
        """``commands``: tool name -> argv to run instead of burning the recorded CPU time.
        ``connect`` makes the client (default: docker-py's, from the environment).
        """
        self._cores = cores
        self._image = image
        self._commands = dict(commands or {})
        self._connect = connect or _from_environment
        self._still_s = still_s
        self._run_id = uuid.uuid4().hex
        self._client: DockerClient | None = None
        self._cpus: tuple[int, ...] = ()
        self._idle: dict[int, list[Container]] = {}
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Connect and make sure that the image is there."""
        self._cpus = tool_core_ids(self._cores)
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="docker-tool")
        self._client = await self._in_thread(self._connect)
        await self._in_thread(self._require_image)

    async def run(self, demand: ToolDemand) -> Execution:
        """Execute the call; on timeout its container is killed with all that runs in it."""
        start_s = time.monotonic()
        idle = self._idle.setdefault(demand.cores_milli, [])
        container: Container | None = idle.pop() if idle else None
        if container is None:
            container = await self._in_thread(self._start, demand.cores_milli)
        before_ns = await self._in_thread(_used_ns, container)
        command = self._commands.get(demand.name)
        timeout_s = None
        if demand.timeout_ps is not None:
            timeout_s = max(0.0, demand.timeout_ps / PS_PER_S - (time.monotonic() - start_s))
        over = asyncio.Event()
        weighed = asyncio.create_task(self._weigh(container, demand, before_ns, over))
        try:
            async with asyncio.timeout(timeout_s):
                if command is None:
                    status, output = await self._burn(container, demand, before_ns)
                else:
                    status, output = await self._in_thread(_execute, container, command)
                if command is None and demand.io_ps:
                    await asyncio.sleep(demand.io_ps / PS_PER_S)
        except TimeoutError:
            used_ns = await self._in_thread(_used_ns, container) - before_ns
            await self._in_thread(_remove, container)
            return Execution(used_ns * PS_PER_NS, timed_out=True)
        except (asyncio.CancelledError, EngineError):
            await self._in_thread(_remove, container)
            raise
        finally:
            over.set()
            await weighed
        if command is None and status != 0:
            raise EngineError(
                f"tool {demand.name!r}: burning CPU time in image {self._image} ended with status "
                f"{status}; it needs python3: {output.strip()[:200]}"
            )
        used_ns = await self._in_thread(_used_ns, container) - before_ns
        self._idle[demand.cores_milli].append(container)
        return Execution(used_ns * PS_PER_NS, timed_out=False)

    async def _burn(
        self, container: Container, demand: ToolDemand, before_ns: int
    ) -> tuple[int, str]:
        """Burn the call's CPU time; a real command may wait for as long as it likes, this may not."""

        async def used_ns() -> int:
            return await self._in_thread(_used_ns, container) - before_ns

        work = self._in_thread(_execute, container, _burn_command(demand))
        return await watched(work, used_ns, name=demand.name, still_s=self._still_s)

    async def _weigh(
        self, container: Container, demand: ToolDemand, before_ns: int, over: asyncio.Event
    ) -> None:
        """Lower a container's weight once its call has had its equal share, until it is over."""
        if not demand.nice or demand.nice_after_ps >= demand.cpu_ps:
            return
        left_ns = demand.nice_after_ps // PS_PER_NS
        while left_ns > 0:
            quickest_s = left_ns / 1e9 * MILLI / demand.cores_milli
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), max(quickest_s, POLL_S))
                return
            used_ns = await self._in_thread(_used_ns, container) - before_ns
            left_ns = demand.nice_after_ps // PS_PER_NS - used_ns
        await self._in_thread(_set_weight, container, WEIGHTS[demand.nice])
        await over.wait()
        await self._in_thread(_set_weight, container, WEIGHTS[0])

    async def close(self) -> None:
        """Remove every container of this run, also those of calls that were cut off."""
        if self._client is not None:
            await self._in_thread(self._remove_all)
            await self._in_thread(self._client.close)
            self._client = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Run blocking docker-py code; its errors become one line."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        assert self._threads is not None, "open() comes first"
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, work, *args)
        except (DockerException, RequestException) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"tool model 'docker': {reason}") from error

    def _require_image(self) -> None:
        from docker.errors import APIError, ImageNotFound

        assert self._client is not None
        try:
            self._client.images.get(self._image)
        except ImageNotFound:
            try:
                self._client.images.pull(self._image)
            except APIError as error:
                raise ConfigError(
                    f"tool model 'docker': image {self._image} is not here and cannot be pulled: "
                    f"{error.explanation or error}; pull or build it first"
                ) from error

    def _start(self, cores_milli: int) -> Container:
        """A container that waits for calls."""
        assert self._client is not None
        return self._client.containers.run(
            self._image,
            ["sleep", "infinity"],
            detach=True,
            init=True,
            labels={LABEL: self._run_id},
            nano_cpus=cores_milli * 1_000_000,
            cpuset_cpus=",".join(str(cpu) for cpu in self._cpus) or None,
        )

    def _remove_all(self) -> None:
        assert self._client is not None
        label = f"{LABEL}={self._run_id}"
        for container in self._client.containers.list(all=True, filters={"label": label}):
            _remove(container)


def _from_environment() -> DockerClient:
    require("docker", "tool model 'docker'")
    import docker

    try:
        client = docker.from_env(timeout=API_TIMEOUT_S)
        client.ping()
    except docker.errors.DockerException as error:
        raise ConfigError(
            "tool model 'docker': no container engine answers (is it running, is DOCKER_HOST right, "
            f"may this user use it?): {error}; or use --tools process"
        ) from error
    return client


def _burn_command(demand: ToolDemand) -> list[str]:
    width = -(-demand.cores_milli // MILLI)
    share_ppm = demand.cores_milli * 1000 // width
    source = Path(burner.__file__).read_text(encoding="utf-8")
    work = [str(demand.cpu_ps // PS_PER_NS), str(width), str(share_ppm)]
    return ["python3", "-c", source, "once", *work]


def _execute(container: Container, command: Sequence[str]) -> tuple[int, str]:
    """Exit status and the end of the output of a command."""
    result = container.exec_run(list(command))
    assert isinstance(result.output, bytes)
    assert result.exit_code is not None, "exec_run without stream waits for the end"
    return result.exit_code, result.output.decode(errors="replace")[-2000:]


def _used_ns(container: Container) -> int:
    """CPU time of everything that ever ran in a container."""
    stats = container.stats(stream=False, one_shot=True)
    assert isinstance(stats, dict)
    return int(stats["cpu_stats"]["cpu_usage"]["total_usage"])


def _set_weight(container: Container, weight: int) -> None:
    """Its share of contended cores; a container that is gone has none."""
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        container.update(cpu_shares=weight)


def _remove(container: Container) -> None:
    """Kill and remove; gone already is fine."""
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        container.remove(force=True)
