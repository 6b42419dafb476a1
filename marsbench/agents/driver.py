"""Runs a cell of live agents: every session is an agent with a task, around a real engine.

Everything that takes time before an agent can begin (imports, workspaces, shells) is done before time
begins; whether a task was solved is judged by its own tests after time has ended, so that neither
shares the machine with what is measured. A session arrives when its time has come and ends when its
agent is done, is late, or is gone; what went wrong with one is no reason for others to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp

from marsbench.agents.atif import recorded_script
from marsbench.agents.books import EngineMoment, SessionBook, write_cell_log
from marsbench.agents.cell import AgentCell, AgentOutcome, Result
from marsbench.agents.containers import Containers
from marsbench.agents.dialects import spoken
from marsbench.agents.front import Front
from marsbench.agents.options import AgentOptions
from marsbench.agents.rooms import SEEN_AT, Rooms
from marsbench.agents.runner.protocol import WorkOrder
from marsbench.agents.task import WORKSPACE, ContainerTask, ScriptedReply
from marsbench.agents.venv import find_python, tool_env, worker_command
from marsbench.agents.workers import AgentGoneError, LiveAgent, WorkerProcess
from marsbench.engine.live.kinds import read_metrics
from marsbench.engine.live.load import LoadMeter
from marsbench.errors import ConfigError
from marsbench.records import EventLog
from marsbench.tools.executor import tool_core_ids

API_KEY = "sk-marsbench-agents"
"""Of all agents: they are told apart by their sessions."""
NAMES = uuid.UUID("6f0f2f5e-3f0b-4c53-8a3c-4d6f2c1b7a10")
SAMPLE_S = 0.5
PREPARE_S = 600.0
TRACE = "trace.jsonl"
PS_PER_NS = 1000
Progress = Callable[[int, int], None]


def run_agents(
    cell: AgentCell,
    options: AgentOptions,
    log: EventLog,
    *,
    keep: Callable[[AgentOutcome], None] = lambda _outcome: None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> AgentOutcome:
    """Run a cell to its end and fill ``log``. ``keep`` is called while trajectories are still there.

    Raises ConfigError or EngineError if agents cannot be started at all.
    """
    python = find_python(options.python, options.name)
    if cell.arrivals.times_ps is not None:
        assert len(cell.arrivals.times_ps) == len(cell.tasks), "an arrival for each session"
    with Rooms() as rooms, Containers() as containers:
        containers.require(list(cell.tasks))
        run = _Run(cell, options, rooms, containers, python, progress, note)
        outcome = asyncio.run(run.run(log))
        keep(outcome)
        if not containers.remove():
            outcome.left_behind.append("containers of this run")
        if not rooms.remove():
            outcome.left_behind.append(str(rooms.folder))
    return outcome


class _Run:
    """One cell from workspaces to books."""

    def __init__(
        self,
        cell: AgentCell,
        options: AgentOptions,
        rooms: Rooms,
        containers: Containers,
        python: Path,
        progress: Progress | None,
        note: Callable[[str], None],
    ) -> None:
        self._cell = cell
        self._options = options
        self._rooms = rooms
        self._containers = containers
        self._python = python
        self._progress = progress
        self._note = note
        self._workers: list[WorkerProcess] = []
        self._samples: list[EngineMoment] = []
        self._finished = 0
        self._client: aiohttp.ClientSession | None = None
        self._start_ns = 0
        self._others: float | None = None
        self._front_url = ""
        self.results = [
            Result(session_id, task.task_id, str(uuid.uuid5(NAMES, f"{cell.salt}/{session_id}")))
            for session_id, task in zip(cell.session_ids, cell.tasks, strict=True)
        ]

    async def run(self, log: EventLog) -> AgentOutcome:
        """The whole cell."""
        cell = self._cell
        try:
            await self._start_workers()
            same_path = self._same_path()
            front = Front(
                cell.upstream,
                cell.system,
                cell.context,
                params=cell.params,
                scripts=self._scripts(SEEN_AT if same_path else ""),
                record=self._rooms.folder / TRACE,
            )
            async with aiohttp.ClientSession() as self._client:
                with front:
                    self._front_url = front.url
                    agents = await self._prepare(same_path)
                    await self._measure(agents)
                    end_ns = time.monotonic_ns()
                    await self._judge(agents)
        finally:
            await asyncio.gather(*(worker.stop() for worker in self._workers))
        self._write(log, front, end_ns)
        gone = [a.gone.result() for w in self._workers for a in w.agents.values() if a.gone.done()]
        return AgentOutcome(
            results=self.results,
            requests=front.relay.notes,
            versions=self._workers[0].ready.get("versions", {}),
            startup_s=self._workers[0].ready.get("startup_s", 0.0),
            same_path=same_path,
            wrong_lengths=front.relay.wrong_lengths,
            left_behind=[str(m["why"]) for m in gone if not m.get("clean", False)],
            wall_s=(end_ns - self._start_ns) / 1e9,
            trace=self._rooms.folder / TRACE,
            others_cpu_share=self._others,
            start_ns=self._start_ns,
        )

    # --- before time begins --------------------------------------------------------------------

    async def _start_workers(self) -> None:
        options = self._options
        env = tool_env(self._python, self._rooms.home)
        count = -(-len(self.results) // options.agents_per_worker)
        command = worker_command(self._python, options.name, self._rooms.folder)
        self._note(f"starting {count} worker(s) for {len(self.results)} {options.name} agents")
        self._workers = [
            WorkerProcess(command, env, self._rooms.folder / f"worker{index}.log")
            for index in range(count)
        ]
        await asyncio.gather(*(worker.start() for worker in self._workers))

    def _same_path(self) -> bool:
        mounts = all(worker.ready.get("mounts") for worker in self._workers)
        if self._options.workspace_mib and not mounts:
            raise ConfigError(
                "driver.params.workspace_mib: a limit needs mounts of one's own, which this user may not "
                "make (root may); leave it out"
            )
        if not mounts:
            self._note("agents see different paths (no mounts of one's own without root), so they "
                       "share less of their prompts than they would in containers")  # fmt: skip
        return bool(mounts)

    def _scripts(self, seen_at: str) -> dict[str, list[ScriptedReply]]:
        if self._options.brain == "model":
            return {}
        if self._options.scripts:
            return {
                result.name: recorded_script(Path(self._options.scripts), result.session_id)
                for result in self.results
            }
        scripts = {}
        for index, (result, task) in enumerate(zip(self.results, self._cell.tasks, strict=True)):
            if not task.script:
                raise ConfigError(
                    f"task {task.task_id} has no script: run it with a real model, "
                    "-c driver.params.brain=model"
                )
            seen = seen_at or str(self._rooms.folder / f"s{index}" / Path(SEEN_AT).name)
            scripts[result.name] = [
                ScriptedReply(spoken(step.message, self._options.name, seen), step.output_tokens)
                for step in task.script
            ]
        return scripts

    async def _prepare(self, same_path: bool) -> list[LiveAgent]:
        """Agents that have everything but the word to go."""
        agents = []
        for index in range(len(self.results)):
            order = await asyncio.to_thread(self._order, index, same_path)
            worker = self._workers[index // self._options.agents_per_worker]
            agents.append(worker.prepare(order))
        for result, agent in zip(self.results, agents, strict=True):
            with contextlib.suppress(AgentGoneError):
                async with asyncio.timeout(PREPARE_S):
                    result.prepare_s = (await agent.prepared)["prepare_s"]
        return agents

    def _order(self, index: int, same_path: bool) -> WorkOrder:
        cell, options, rooms = self._cell, self._options, self._rooms
        task, result = cell.tasks[index], self.results[index]
        container = None
        if isinstance(task, ContainerTask):
            workspace = rooms.take(index, task, self._containers)
            container = self._containers.start(task, workspace)
        else:
            workspace = rooms.build(index, task)
        result.trajectory = rooms.trajectory(index)
        return WorkOrder(
            session=result.name,
            workspace=str(workspace),
            instruction=task.instruction.replace(
                WORKSPACE, SEEN_AT if same_path else str(workspace)
            ),
            base_url=self._front_url,
            model=cell.upstream.model,
            api_key=API_KEY,
            mount_at=SEEN_AT if same_path else "",
            limit_mib=options.workspace_mib,
            cpus=tool_core_ids(cell.context.tool_cores),
            max_turns=options.max_turns,
            tool_timeout_s=options.tool_timeout_s,
            trajectory=str(result.trajectory),
            env={**tool_env(self._python, rooms.home), **task.env},
            container=container,
        )

    # --- while time runs -------------------------------------------------------------------------

    async def _measure(self, agents: Sequence[LiveAgent]) -> None:
        plan = self._cell.arrivals
        places = asyncio.Semaphore(plan.closed_loop or len(agents) or 1)
        await self._sample()
        meter = LoadMeter(self._cell.upstream.url)
        self._start_ns = time.monotonic_ns()
        sampling = asyncio.create_task(self._keep_sampling())
        try:
            async with asyncio.TaskGroup() as group:
                for index, agent in enumerate(agents):
                    if plan.times_ps is None:
                        await places.acquire()
                    at_ps = None if plan.times_ps is None else plan.times_ps[index]
                    group.create_task(self._session(index, agent, at_ps, places))
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        self._others = meter.others()
        await self._sample()

    async def _session(
        self, index: int, agent: LiveAgent, at_ps: int | None, places: asyncio.Semaphore
    ) -> None:
        result = self.results[index]
        if at_ps is None:
            result.arrival_ns = time.monotonic_ns()
        else:
            result.arrival_ns = self._start_ns + at_ps // PS_PER_NS
            await asyncio.sleep(max(0.0, (result.arrival_ns - time.monotonic_ns()) / 1e9))
        worker = self._workers[index // self._options.agents_per_worker]
        worker.say({"op": "go", "session": result.name})
        try:
            async with asyncio.timeout(self._options.task_timeout_s):
                found = await asyncio.shield(agent.finished)
            result.end_ns = found["end_ns"]
            result.done = found["ok"]
            result.reason = "" if found["ok"] else found["reason"]
            result.turns = found["turns"]
            result.cpu_s, result.peak_bytes = found["cpu_s"], found["peak_bytes"]
        except TimeoutError:
            result.timed_out = True
            result.reason = f"not done {self._options.task_timeout_s:g} s after its arrival"
            worker.say({"op": "kill", "session": result.name, "why": result.reason})
            await agent.gone
            result.end_ns = time.monotonic_ns()
        except AgentGoneError as error:
            result.end_ns = time.monotonic_ns()
            result.reason = str(error)
        result.tools = agent.tools
        await self._end_at_gateway(result)
        places.release()
        self._finished += 1
        if self._progress is not None:
            now_ps = (time.monotonic_ns() - self._start_ns) * PS_PER_NS
            self._progress(self._finished, now_ps)

    async def _end_at_gateway(self, result: Result) -> None:
        """Tell the system under test; a session that never made a request is none there."""
        assert self._client is not None
        url = f"{self._front_url}/v1/sessions/{result.name}/end"
        body = {"status": "ok" if result.done else "error"}
        headers = {"authorization": f"Bearer {API_KEY}"}
        for _ in range(20):
            async with self._client.post(url, json=body, headers=headers) as answer:
                if (
                    answer.status != 409
                ):  # 409: a turn of an agent that was killed is still in flight
                    return
            await asyncio.sleep(0.1)

    async def _keep_sampling(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            await self._sample()

    async def _sample(self) -> None:
        assert self._client is not None
        url = f"{self._cell.upstream.url}/metrics"
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._client.get(url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                found = read_metrics(await answer.read()) if answer.status == 200 else None
                if found is not None:
                    self._samples.append(EngineMoment(time.monotonic_ns(), found[1]))

    # --- after time has ended ----------------------------------------------------------------------

    async def _judge(self, agents: Sequence[LiveAgent]) -> None:
        """One after the other: a suite with parallel workers is to have the machine for itself."""
        for index, (result, agent) in enumerate(zip(self.results, agents, strict=True)):
            task = self._cell.tasks[index]
            if agent.gone.done() or result.timed_out:
                continue
            worker = self._workers[index // self._options.agents_per_worker]
            worker.say(
                {
                    "op": "judge",
                    "session": result.name,
                    "command": list(task.check),
                    "timeout_s": task.check_timeout_s,
                }
            )
            try:
                found = await agent.judged
            except AgentGoneError as error:
                result.reason = result.reason or str(error)
                continue
            result.passed = found["passed"] and not result.reason
            result.judge_output = found["output"]
            if not result.reason and not result.passed:
                result.reason = "the agent says that it is done, but the task's tests fail"

    def _write(self, log: EventLog, front: Front, end_ns: int) -> None:
        write_cell_log(
            log,
            front.log,
            [
                SessionBook(r.session_id, r.name, r.arrival_ns, r.end_ns, r.status)
                for r in self.results
            ],
            self._samples,
            source_start_ns=front.start_ns,
            start_ns=self._start_ns,
            end_ns=end_ns,
            tool_cores=self._cell.context.tool_cores,
        )
