"""Small tasks with scripts, an engine that invents tokens, and cells of plain agents around it."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest
import uvicorn

from marsbench.agents.cell import AgentCell, AgentOutcome
from marsbench.agents.driver import run_agents
from marsbench.agents.front import Upstream
from marsbench.agents.options import AgentOptions
from marsbench.agents.task import ScriptedReply
from marsbench.arrival import ArrivalPlan
from marsbench.core import PolicyContext
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.records import EventLog
from marsbench.system import System

CONTEXT = PolicyContext(
    num_blocks=1000,
    block_size=16,
    max_num_batched_tokens=2048,
    max_num_seqs=16,
    tool_cores=0,
    prefill_tokens_per_s=1000.0,
)


def reply(name: str, number: int = 0, text: str = "", **arguments) -> ScriptedReply:
    """A reply with one tool call."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return ScriptedReply({"role": "assistant", "content": text, "tool_calls": [call]}, 4)


def shell(*commands: str) -> list[ScriptedReply]:
    """A script that runs commands in the workspace and finishes."""
    steps = [
        reply("terminal", number, f"Step {number}.", command=f"cd {{workspace}} && {command}")
        for number, command in enumerate(commands)
    ]
    return [*steps, reply("finish", len(steps), message="done")]


@dataclass
class SmallTask:
    """A file that must hold the word good."""

    task_id: str
    script: Sequence[ScriptedReply]
    instruction: str = "Write good into {workspace}/state."
    check: Sequence[str] = ("grep", "-q", "good", "state")
    check_timeout_s: float = 30.0
    env: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))

    def build(self, folder: Path) -> None:
        (folder / "state").write_text("bad\n")


GOOD = ("cat state", "echo good > state")


@contextmanager
def serving(app) -> Iterator[str]:
    """An ASGI application on a port of this machine, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Ran:
    """A cell that has run."""

    outcome: AgentOutcome
    log: EventLog
    backend: FakeBackend


@pytest.fixture
def run_cell() -> Callable[..., Ran]:
    """Runs a cell of agents (plain ones) around an engine that answers as ``plan`` says."""

    def run(tasks, plan=None, closed_loop=None, limit_mib=0, timeout_s=60.0, **more) -> Ran:
        backend = FakeBackend(plan=plan or (lambda _number, _body: FakeAnswer()))
        log = EventLog()
        with serving(backend) as url:
            cell = AgentCell(
                session_ids=[task.task_id for task in tasks],
                tasks=tasks,
                arrivals=ArrivalPlan(None, closed_loop=closed_loop or len(tasks)),
                system=System(name="vllm", summary="stock"),
                context=CONTEXT,
                upstream=Upstream(url, "fake"),
                salt="test",
            )
            chosen = more.get("options") or AgentOptions(
                name="plain",
                python=sys.executable,
                task_timeout_s=timeout_s,
                workspace_mib=limit_mib,
            )
            outcome = run_agents(
                cell,
                chosen,
                log,
                keep=lambda found: more["keep"](found, log) if "keep" in more else None,
            )
        return Ran(outcome, log, backend)

    return run
