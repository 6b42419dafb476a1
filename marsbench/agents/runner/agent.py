"""The process of one agent: prepares, waits for its task to arrive, works, has its work judged."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from marsbench.agents.runner import container_shell, processes, room
from marsbench.agents.runner.agents import Agent, AgentKind, Place
from marsbench.agents.runner.protocol import Finish, Lines, WorkOrder, encode
from marsbench.agents.runner.tools import ToolRunner

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OUTPUT_CHARS = 2000
ATIF_VERSION = "ATIF-v1.8"


def main(kind: AgentKind, order: WorkOrder, connection: socket.socket) -> NoReturn:
    """Never returns: the process ends here, whatever happens."""
    try:
        _work(kind, order, connection)
    except BaseException:  # noqa: BLE001 - of a forked process: nobody is above
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _work(kind: AgentKind, order: WorkOrder, connection: socket.socket) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update({**order.env, processes.MARK: order.session})
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            connection.sendall(encode(message))

    start_s = time.monotonic()
    try:
        seen = room.enter(Path(order.workspace), order.mount_at, order.limit_mib)
        tools = ToolRunner(order, tell, seen)
        shell = _shell(order, seen)
        agent = kind.make(Place(order, seen, tools, shell))
        agent.prepare()
    except Exception as error:  # told to the worker first, whatever it is; then it ends us
        tell({"said": "finished", **_failure("could not start", error, 0).__dict__})
        raise
    tell({"said": "prepared", "prepare_s": time.monotonic() - start_s, "seen": str(seen)})
    for message in _messages(connection):
        if message["op"] == "go":
            tell({"said": "finished", **_run(agent, tools).__dict__})
            _write_trajectory(kind, order, agent)
            agent.close()
        elif message["op"] == "judge":
            tell({"said": "judged", **_judge(message, seen, shell)})


def _run(agent: Agent, tools: ToolRunner) -> Finish:
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        ok, reason = agent.run()
    except Exception as error:  # noqa: BLE001 - whatever an agent's package raises is its failure
        traceback.print_exc()
        finish = _failure("the agent failed", error, agent.turns)
        ok, reason = False, tools.refused or finish.reason
    end_ns = time.monotonic_ns()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Finish(
        ok=ok,
        reason=reason,
        turns=agent.turns,
        end_ns=end_ns,
        cpu_s=used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        peak_bytes=processes.resident_bytes(os.getpid())[1],
    )


def _failure(what: str, error: Exception, turns: int) -> Finish:
    text = " ".join(str(error).split())[:500]
    reason = f"{what}: {type(error).__name__}: {text}"
    return Finish(ok=False, reason=reason, turns=turns, end_ns=time.monotonic_ns())


def _shell(order: WorkOrder, seen: Path) -> tuple[str, ...]:
    """What starts a shell where the task's commands run."""
    if order.container is None:
        return ("bash",)
    inner = order.container
    return (sys.executable, container_shell.__file__, inner.address, inner.container, str(seen))


def _judge(message: dict[str, Any], seen: Path, shell: Sequence[str]) -> dict[str, Any]:
    """Run the task's own check in the workspace; only its exit status counts."""
    start_s = time.monotonic()
    command = list(message["command"])
    if command[0] == "bash":
        command[:1] = shell
    try:
        done = subprocess.run(  # noqa: S603 - the task's own
            command,
            cwd=seen,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=message["timeout_s"],
            check=False,
        )
        passed, output = done.returncode == 0, done.stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        passed, output = False, str(error)
    return {
        "passed": passed,
        "output": output[-OUTPUT_CHARS:],
        "judge_s": time.monotonic() - start_s,
    }


def _write_trajectory(kind: AgentKind, order: WorkOrder, agent: Agent) -> None:
    """All that was said and done; a failure here is none of the task's."""
    if not order.trajectory:
        return
    try:
        steps = agent.steps()
    except Exception:  # noqa: BLE001 - the events are the package's own
        traceback.print_exc(file=sys.stderr)
        return
    Path(order.trajectory).write_text(
        json.dumps(
            {
                "schema_version": ATIF_VERSION,
                "session_id": order.session,
                "agent": {"name": kind.name, "version": "", "model_name": order.model},
                "steps": steps,
            },
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )


def _messages(connection: socket.socket) -> Any:
    lines = Lines()
    while data := connection.recv(1 << 16):
        yield from lines.feed(data)
