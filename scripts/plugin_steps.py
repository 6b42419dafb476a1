"""The ``steps`` part of bench_plugin: time of vLLM's scheduler per step, without a model.

vLLM's own classes, stock, with null policies and with all of MARS, under the same closed loops. A
step is add_request, schedule and update_from_output. Every sample is a process of its own: within
one, what Python learned of one class's objects would help or hinder the others.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plugin_numbers import MARS, NULL, STOCK, summary, told

from marsbench.engine.base import EngineConfig
from marsbench.engine.vllm.runtime import build_scheduler, quietly
from marsbench.errors import EngineError

STEP_PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
BLOCK = 16


@dataclass(frozen=True)
class ClosedLoop:
    """A closed loop of sessions on a scheduler."""

    name: str
    sessions: int
    first_tokens: int
    """Prompt of the first turn."""
    output_tokens: int
    new_tokens: int
    """What a turn's prompt adds to the last one's, the output left out."""
    turns: int
    """After so many a session makes room for a new one."""
    kv_share: float
    """KV blocks, as a share of what all sessions need at their longest."""

    def config(self) -> EngineConfig:
        last = self.first_tokens + self.turns * (self.output_tokens + self.new_tokens)
        blocks = self.sessions * (last // BLOCK + 2)
        return EngineConfig(
            num_blocks=max(int(self.kv_share * blocks), last // BLOCK + 2),
            block_size=BLOCK,
            max_num_seqs=max(self.sessions, 1),
            max_model_len=65_536,
        )


DECODE = "decode"
LOADS = {
    DECODE: lambda n: ClosedLoop(DECODE, n, 1024, 20_000, 0, 1, 1.0),
    "turns": lambda n: ClosedLoop("turns", n, 2048, 64, 256, 10, 1.5),
    "pressure": lambda n: ClosedLoop("pressure", n, 8192, 64, 256, 10, 0.4),
}
"""All decode, nothing else happens; sessions of ten turns with memory for all; or for 40 % of
them, so that turns wait, pins are given up and turns are preempted."""


class Lane:
    """A scheduler with its own closed loop of sessions, stepped without a model."""

    def __init__(self, name: str, scheduler: Any, load: ClosedLoop, depth: int, vllm: Any) -> None:
        self.name = name
        self.scheduler = scheduler
        self.load = load
        self._depth = depth
        self._vllm = vllm
        self._flight: deque[tuple[Any, list[list[int]]]] = deque()
        self._due = [(session, 0) for session in range(load.sessions)]
        self._contexts: dict[int, list[int]] = {}
        self._next_session = load.sessions
        self._made = 0
        self._open: dict[str, tuple[int, int]] = {}
        self._waits: deque[tuple[int, int, int]] = deque()
        self.steps = 0
        self.scheduled = 0
        self.finished = 0
        self.running = 0

    def _request(self, session: int, turn: int) -> Any:
        load = self.load
        context = self._contexts.setdefault(session, [])
        new = load.new_tokens if turn else load.first_tokens
        start = session * 1_000_003 + len(context)
        context.extend(range(start, start + new))
        output = load.output_tokens
        if load.name != DECODE:  # so that turns end one by one
            output += (session * 7 + turn * 13) % 17
        hints = {
            "marsbench_session": session,
            "marsbench_turn": turn,
            "marsbench_tools": ["bash"],
            "marsbench_last": int(turn + 1 == load.turns),
        }
        self._made += 1
        request_id = f"{self._made:08d}"
        self._open[request_id] = session, turn
        return self._vllm.request(request_id, list(context), output, hints, float(self._made))

    def step(self) -> int:
        """One step, and its nanoseconds in the scheduler."""
        scheduler = self.scheduler
        while self._waits and self._waits[0][0] <= self.steps:
            self._due.append(self._waits.popleft()[1:])
        arrived = [self._request(session, turn) for session, turn in self._due]
        self._due.clear()
        clock = time.thread_time_ns
        start_ns = clock()
        for request in arrived:
            scheduler.add_request(request)
        step = scheduler.schedule()
        spent_ns = clock() - start_ns
        self.steps += 1
        scheduled = step.num_scheduled_tokens
        self.scheduled += len(scheduled)
        self.running += len(scheduler.running)
        if scheduled:
            requests = scheduler.requests
            sampled = [[] if requests[i].is_prefill_chunk else [7] for i in scheduled]
            self._flight.append((step, sampled))
        if self._flight and (len(self._flight) == self._depth or not scheduled):
            spent_ns += self._answer()
        return spent_ns

    def _answer(self) -> int:
        step, sampled = self._flight.popleft()
        ids = list(step.num_scheduled_tokens)
        output = self._vllm.output(
            req_ids=ids,
            req_id_to_index={i: k for k, i in enumerate(ids)},
            sampled_token_ids=sampled,
        )
        start_ns = time.thread_time_ns()
        self.scheduler.update_from_output(step, output)
        spent_ns = time.thread_time_ns() - start_ns
        for request_id in ids:
            if request_id in self._open and request_id not in self.scheduler.requests:
                self._ended(*self._open.pop(request_id))
        return spent_ns

    def _ended(self, session: int, turn: int) -> None:
        """The next turn comes after its tools, four steps on; or another session."""
        self.finished += 1
        turn += 1
        if turn == self.load.turns:
            del self._contexts[session]
            session, turn = self._next_session, 0
            self._next_session += 1
        self._waits.append((self.steps + 4, session, turn))


def vllm_classes() -> Any:
    """What lanes need of vLLM."""
    from types import SimpleNamespace

    with quietly():
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import Request

        from marsbench.engine.vllm.plugin import ServedScheduler, SyncServedScheduler
        from marsbench.engine.vllm.requests import content_hash
        from marsbench.engine.vllm.scheduler import PolicyScheduler
    init_none_hash(content_hash)
    hasher = get_request_block_hasher(BLOCK, content_hash)

    def request(
        request_id: str, prompt: list[int], output: int, hints: dict[str, Any], arrival: float
    ) -> Any:
        sampling = SamplingParams(max_tokens=output, ignore_eos=True, extra_args=hints)
        return Request(
            request_id, prompt, sampling, pooling_params=None, arrival_time=arrival,
            block_hasher=hasher,
        )  # fmt: skip

    return SimpleNamespace(
        request=request, output=ModelRunnerOutput, sync=Scheduler, asynchronous=AsyncScheduler,
        null=PolicyScheduler, served=ServedScheduler, sync_served=SyncServedScheduler,
    )  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A scheduler class, and what its server would be told."""

    cls: str
    """Attribute of ``vllm_classes()``."""
    system: str = ""
    linked: bool = False

    def build(self, config: EngineConfig, vllm: Any, folder: Path) -> Any:
        told: dict[str, Any] = {"system": self.system, "profile": STEP_PROFILE}
        if self.linked:
            address = f"ipc://{folder}/{self.cls}-{self.system}"
            told |= {"listen": f"{address}-driver", "publish": f"{address}-engine"}

        def make(**given: Any) -> Any:
            if self.system:
                given["vllm_config"].additional_config = {"marsbench": told}
            return getattr(vllm, self.cls)(**given)

        with quietly():
            return build_scheduler(config, make)  # type: ignore[arg-type]


STEP_CONTENDERS = {
    "sync": {
        STOCK: Contender("sync"),
        NULL: Contender("null"),
        MARS: Contender("sync_served", "mars"),
    },
    "async": {
        STOCK: Contender("asynchronous"),
        NULL: Contender("served", "vllm", linked=True),
        MARS: Contender("served", "mars", linked=True),
    },
}
"""As a library class; and as ``marsbench run`` starts a server: vLLM's default asynchronous
scheduler, joined to a control plane (which says nothing here)."""


def sample(mode: str, name: str, load: ClosedLoop, steps: int, vllm: Any) -> dict[str, float]:
    """Microseconds per step of one contender under one load, once it has settled."""
    with tempfile.TemporaryDirectory() as folder:
        contender = STEP_CONTENDERS[mode][name]
        scheduler = contender.build(load.config(), vllm, Path(folder))
        lane = Lane(name, scheduler, load, 1 if mode == "sync" else 2, vllm)
        settle = 40 if load.name == DECODE else 200
        while lane.steps < settle or (load.name == DECODE and scheduler.waiting):
            lane.step()
        lane.scheduled = lane.finished = lane.running = 0
        gc.collect()
        gc.freeze()
        gc.disable()
        spent_ns = sum(lane.step() for _ in range(steps))
        scheduler.shutdown()
    return {
        "us_per_step": spent_ns / steps / 1000,
        "scheduled_per_step": lane.scheduled / steps,
        "running": lane.running / steps,
        "turns": lane.finished / steps,
    }


def in_child(task: Callable[[], Any]) -> Any:
    """What ``task`` returns in a process of its own, which has what this one has imported."""
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: writer.send(task()))
    child.start()
    writer.close()
    try:
        return reader.recv()
    except EOFError:
        raise EngineError("a measuring process ended early; its error is above") from None
    finally:
        child.join()


def measure_steps(
    mode: str, load: ClosedLoop, repeats: int, steps: int, vllm: Any
) -> dict[str, Any]:
    """Each contender under one load, in turn."""
    names = (STOCK, NULL, MARS)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(repeats):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(in_child(partial(sample, mode, name, load, steps, vllm)))
    runs = {name: [row["us_per_step"] for row in rows] for name, rows in found.items()}
    each = {
        name: [row["us_per_step"] / max(row["running"], 1.0) for row in rows]
        for name, rows in found.items()
    }
    cells = summary(runs, "us_per_step", STOCK)
    for name, per_turn in summary(each, "us", STOCK).items():
        cells[name]["us_per_running_turn"] = per_turn
        for what in ("scheduled_per_step", "running", "turns"):
            cells[name][what] = sum(row[what] for row in found[name]) / repeats
    return {"mode": mode, "load": load.name, "sessions": load.sessions, "contenders": cells}


def step_cells(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All loads of all modes that were asked for."""
    vllm = vllm_classes()
    cells = []
    for mode in given.modes:
        for load_name in given.loads:
            for sessions in given.running:
                load = LOADS[load_name](sessions)
                steps = max(given.steps * 16 // (16 + sessions), 10)
                cells.append(measure_steps(mode, load, given.repeats, steps, vllm))
                print_step_cell(cells[-1])
    return cells


def print_step_cell(cell: dict[str, Any]) -> None:
    parts = []
    for name, row in cell["contenders"].items():
        a_turn = row["us_per_running_turn"]
        text = told(name, row, "us_per_step", "us") + f" run {row['running']:.0f}"
        if "ratio" in a_turn:
            text += f", a turn {a_turn['ratio']:.3f}"
        parts.append(text)
    print(f"{cell['mode']:6} {cell['load']:8} {cell['sessions']:4}: {'; '.join(parts)}", flush=True)
