"""How fast are the virtual-time engines, sim and vllm-core, on the same cells? And vllm-core's own share?

One process, alternating runs, medians. Both engines run each cell through the same driver, and
every event must be the same. Then vllm-core is set against a bare loop that makes vLLM's calls
alone: the same requests before the same steps, answered with the same outputs. CPU time decides:
wall time depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm_python import has_vllm, restart

if not has_vllm():
    restart("bench_engines")

import numpy as np

from marsbench.arrival import ArrivalPlan, arrival_rng, arrivals
from marsbench.compiled import named_folder
from marsbench.core import Session
from marsbench.engine import ENGINES
from marsbench.engine.base import EngineConfig
from marsbench.engine.kind import VirtualTime
from marsbench.engine.virtual import VirtualEngine
from marsbench.engine.vllm.runtime import build_scheduler, quietly, require_vllm
from marsbench.errors import MarsbenchError
from marsbench.events import FIELDS, Kind
from marsbench.experiment.wiring import Outcome, Setup, plan_cell, stock_system
from marsbench.markdown import read_block, write_block
from marsbench.records import EventLog
from marsbench.trace.source import open_workload

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "reference" / "engines.json"
TABLES = ROOT / "results" / "reference" / "speed.md"
BLOCK = "engines"
WORKLOAD, SPLIT, SEED = "swe-bench", "reporting", 0
PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
TOOL_CORES = 8
RATES = {"warm": 0.005, "pressured": 1.0}
"""Sessions per second: nothing is computed twice; half of what is prefilled was there before."""
SIM_RUNS = 5
"""Runs of sim per run of vllm-core: it takes milliseconds."""
KNOWN = "marsbench, known"
"""The bare loop gets the prompts' hashes ready-made: the strictest comparison, as vllm-core makes
those of new blocks, and only takes over those of blocks it has hashed in earlier turns.
"""
LEAST_SPEEDUP, MOST_OVERHEAD = 100.0, 1.2
SAMPLED = "mean_referenced_mblocks"
"""The one field that is not compared: sim interpolates this mean over the steps it jumps."""
COMPARED = (
    "every field of every event row, but for KV_STATS.mean_referenced_mblocks (a mean between two "
    "telemetry samples, which sim interpolates over the steps it jumps); names and session ids"
)


class Stopwatch:
    """CPU and wall seconds between starts and stops."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    def start(self) -> None:
        self.wall_s -= time.perf_counter()
        self.cpu_s -= time.process_time()

    def stop(self) -> None:
        self.cpu_s += time.process_time()
        self.wall_s += time.perf_counter()


@dataclass(frozen=True)
class BenchedCell:
    """A cell without its engine."""

    name: str
    rate_per_s: float
    sessions: tuple[Session, ...]
    plan: ArrivalPlan


@dataclass
class Timings:
    """All measurements of one contender."""

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def add(self, watch: Stopwatch) -> None:
        self.cpu_s.append(watch.cpu_s)
        self.wall_s.append(watch.wall_s)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_s)

    def row(self) -> dict[str, Any]:
        return {"cpu_s": self.cpu, "wall_s": statistics.median(self.wall_s),
                "runs_cpu_s": self.cpu_s, "runs_wall_s": self.wall_s}  # fmt: skip


class EnginesDifferError(MarsbenchError):
    """The engines did not do the same, so their speeds cannot be compared."""


def cases(num: int, turns: int) -> Iterator[BenchedCell]:
    """The same sessions at each rate."""
    workload = open_workload(WORKLOAD)
    sessions = tuple(workload.sessions(num, SEED, SPLIT))
    if turns:
        sessions = tuple(replace(session, turns=session.turns[:turns]) for session in sessions)
    for name, rate_per_s in RATES.items():
        rng = arrival_rng(SEED, workload.name)
        plan = arrivals("poisson", sessions, rate_per_s=rate_per_s, rng=rng)
        yield BenchedCell(name, rate_per_s, sessions, plan)


# --- the engines through the driver ----------------------------------------------------------


def run(
    engine: str, case: BenchedCell, prepare: Callable[[Any], None] | None = None
) -> tuple[Outcome, Stopwatch, Any]:
    """A cell under stock policies; the time is the engine's, without making the core."""
    watch = Stopwatch()
    made: list[Any] = []
    kind = ENGINES[engine]
    assert isinstance(kind, VirtualTime)
    core_class = kind.core_class()

    def make(*given: Any) -> Any:
        watch.stop()
        made.append(core_class(*given))
        if prepare is not None:
            prepare(made[0])
        watch.start()
        return made[0]

    setup = Setup(engine, PROFILE, TOOL_CORES, "modelled")
    plan = plan_cell(setup, stock_system(), {}, case.sessions, case.plan, seed=SEED)
    log = EventLog()
    gc.collect()
    watch.start()
    ran = VirtualEngine(make).run(plan, log)
    watch.stop()
    return Outcome(log, plan.flags, ran), watch, made[0]


def largest_gap_blocks(sim: EventLog, real: EventLog) -> float:
    """EnginesDifferError at the first row that differs; else the largest gap in what may."""
    ours, theirs = sim.to_numpy(), real.to_numpy()
    if (sim.strings, sim.session_ids) != (real.strings, real.session_ids):
        raise EnginesDifferError("sim and vllm-core name tools or sessions differently")
    column = 5 + FIELDS[Kind.KV_STATS].index(SAMPLED)
    num = min(len(ours), len(theirs))
    differs = ours[:num] != theirs[:num]
    differs[:, column] &= ours[:num, 1] != Kind.KV_STATS
    wrong = np.flatnonzero(differs.any(axis=1))
    if len(wrong) or len(ours) != len(theirs):
        row = int(wrong[0]) if len(wrong) else num
        found = [log[row].tolist() if row < len(log) else "no such row" for log in (ours, theirs)]
        raise EnginesDifferError(
            f"event {row} differs (sim of {len(ours)}, vllm-core of {len(theirs)} rows): "
            f"sim {found[0]}, vllm-core {found[1]}; see scripts/check_vllm.py"
        )
    samples = ours[:, 1] == Kind.KV_STATS
    gaps = np.abs(ours[samples, column] - theirs[samples, column])
    return float(gaps.max()) / 1000


# --- vLLM's calls alone ----------------------------------------------------------------------


@dataclass(frozen=True)
class Arrived:
    """What a vLLM request was made of; ids as an array, for memory."""

    request_id: str
    prompt: np.ndarray
    hashes: list[bytes]
    sampling: Any
    arrival_time: int
    priority: int
    session_id: str


@dataclass
class Recording:
    """What vllm-core asked of vLLM's scheduler in one cell."""

    config: EngineConfig
    rounds: list[tuple[list[Arrived], Any]] = field(default_factory=list)
    """Per call of schedule(): requests added before it, ModelRunnerOutput after it (None if it
    scheduled nothing).
    """


def record(core: Any, into: Recording) -> None:
    """Note the calls that a VllmCore makes to its scheduler."""
    scheduler = core._scheduler  # noqa: SLF001
    add, schedule, update = (
        scheduler.add_request, scheduler.schedule, scheduler.update_from_output,
    )  # fmt: skip
    added: list[Arrived] = []

    def noted_add(request: Any) -> None:
        prompt = np.array(request.prompt_token_ids, dtype=np.int64)
        added.append(
            Arrived(request.request_id, prompt, list(request.block_hashes),
                    request.sampling_params, request.arrival_time, request.priority,
                    request.session_id)
        )  # fmt: skip
        add(request)

    def noted_schedule() -> Any:
        into.rounds.append((added.copy(), None))
        added.clear()
        return schedule()

    def noted_update(step: Any, output: Any) -> Any:
        into.rounds[-1] = (into.rounds[-1][0], output)
        return update(step, output)

    scheduler.add_request = noted_add
    scheduler.schedule = noted_schedule
    scheduler.update_from_output = noted_update


def bare(
    recording: Recording, hash_function: Callable[[Any], bytes], *, hashed: bool = False
) -> tuple[Stopwatch, Any]:
    """The recorded calls on a fresh scheduler, and nothing else but lists of the prompts' ids,
    which are made with the watch stopped. ``hashed``: the prompts' block hashes come as recorded.
    """
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    with quietly():
        scheduler = build_scheduler(recording.config, Scheduler)
        init_none_hash(hash_function)
    hasher = get_request_block_hasher(recording.config.block_size, hash_function)
    watch = Stopwatch()
    gc.collect()
    watch.start()
    for added, output in recording.rounds:
        for one in added:
            watch.stop()
            ids = one.prompt.tolist()
            watch.start()
            request = Request(
                one.request_id, ids, one.sampling, pooling_params=None,
                arrival_time=one.arrival_time, priority=one.priority,
                session_id=one.session_id, block_hasher=None if hashed else hasher,
            )  # fmt: skip
            if hashed:
                request.block_hashes.extend(one.hashes)
                request._block_hasher = hasher  # noqa: SLF001
            scheduler.add_request(request)
        step = scheduler.schedule()
        if output is not None:
            scheduler.update_from_output(step, output)
    watch.stop()
    return watch, scheduler


def end_state(scheduler: Any) -> tuple[list[int], set[int]]:
    """Order of the free list, which every allocation and eviction changes; bytes of the hashes."""
    from vllm.v1.core.kv_cache_utils import get_block_hash

    if scheduler.get_num_unfinished_requests():
        raise EnginesDifferError("a request was left unfinished in vLLM's scheduler")
    pool = scheduler.kv_cache_manager.block_pool
    free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
    sizes = {len(get_block_hash(b.block_hash)) for b in pool.blocks if b.block_hash is not None}
    return free, sizes


def hashing(function: Callable[[Any], bytes]) -> AbstractContextManager[object]:
    """vllm-core with another hash of block contents."""
    from marsbench.engine.vllm import requests

    return patch.object(requests, "content_hash", function)


def hash_functions() -> dict[str, Callable[[Any], bytes]]:
    """marsbench's hash and vLLM's default, by name."""
    with quietly():
        from vllm.config import CacheConfig
        from vllm.utils.hashing import get_hash_fn_by_name

        from marsbench.engine.vllm.requests import content_hash
    default = CacheConfig().prefix_caching_hash_algo
    return {"marsbench": content_hash, "vllm default": get_hash_fn_by_name(default)}


# --- a case ----------------------------------------------------------------------------------


def measure(case: BenchedCell, repeats: int) -> dict[str, Any]:
    """All numbers of a cell. The first run of each engine is compared and recorded, not timed."""
    sim, _, _ = run("sim", case)
    recording = Recording(sim.engine)
    real, _, core = run("vllm-core", case, lambda core: record(core, recording))
    gap_blocks = largest_gap_blocks(sim.log, real.log)
    wanted = end_state(core._scheduler)  # noqa: SLF001
    del core
    gc.collect()
    gc.freeze()  # what is recorded must not slow the collector down in what is timed
    engine = Timings()
    hashes = hash_functions()
    cores = {name: Timings() for name in hashes}
    bares = {name: Timings() for name in (*hashes, KNOWN)}
    for _ in range(repeats):
        for _ in range(SIM_RUNS):
            again, watch, _ = run("sim", case)
            check_same(again.log, sim.log, "sim")
            engine.add(watch)
        for name, function in hashes.items():
            with hashing(function):
                again, watch, core = run("vllm-core", case)
            check_same(again.log, real.log, "vllm-core")
            cores[name].add(watch)
            core_state = end_state(core._scheduler)  # noqa: SLF001
            del core
            for known in (False, True)[: 1 + (name == "marsbench")]:
                watch, scheduler = bare(recording, function, hashed=known)
                bares[KNOWN if known else name].add(watch)
                if not (wanted[0], core_state[1]) == core_state == end_state(scheduler):
                    raise EnginesDifferError("the bare loop ended in another state than vllm-core")
                del scheduler
    gc.unfreeze()
    cores[KNOWN] = cores["marsbench"]
    return {
        **described(case, sim),
        "largest_gap_blocks": gap_blocks,
        "sim": rates(engine, sim),
        "vllm-core": rates(cores["marsbench"], sim),
        "speedup": cores["marsbench"].cpu / engine.cpu,
        "overhead": {
            name: {
                "vllm-core": cores[name].row(),
                "bare": bares[name].row(),
                "ratio": cores[name].cpu / bares[name].cpu,
            }
            for name in bares
        },
        "as_shipped_over_vllm_default": cores["marsbench"].cpu / bares["vllm default"].cpu,
    }


def check_same(log: EventLog, first: EventLog, engine: str) -> None:
    if log.rows != first.rows:
        raise EnginesDifferError(f"two runs of {engine} on one cell differ")


def described(case: BenchedCell, outcome: Outcome) -> dict[str, Any]:
    rows = outcome.log.to_numpy()
    ends = rows[rows[:, 1] == Kind.GPU_END]
    _, cached, prefilled, recomputed = (int(ends[:, column].sum()) for column in range(5, 9))
    return {
        "cell": case.name,
        "rate_per_s": case.rate_per_s,
        "sessions": len(case.sessions),
        "calls": len(ends),
        "steps": outcome.ran.stats.steps,
        "events": len(rows),
        "cached_share": cached / (cached + prefilled),
        "recomputed_share": recomputed / prefilled,
        "preemptions": outcome.ran.stats.preemptions,
        "evicted_blocks": outcome.ran.stats.evicted_blocks,
    }


def rates(timings: Timings, outcome: Outcome) -> dict[str, Any]:
    calls = outcome.log.count(Kind.GPU_END)
    return {
        **timings.row(),
        "calls_per_cpu_s": calls / timings.cpu,
        "steps_per_cpu_s": outcome.ran.stats.steps / timings.cpu,
    }


# --- what is written -------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "vllm": require_vllm(),
        "compiled_core": named_folder() is not None,
    }


def markdown(found: dict[str, Any]) -> str:
    """The block of the tables' page."""
    host = found["machine"]
    sim = "sim, compiled" if host["compiled_core"] else "sim"
    head = ("cell", "calls", "steps", f"`{sim}`: calls/s", "steps/s", "`vllm-core`: calls/s",
            "steps/s", "`sim` is", "`vllm-core` / bare vLLM")  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "|---" + "|--:" * 8 + "|"]
    for cell in found["cells"]:
        speeds = [
            f"{cell[engine][rate]:,.0f}"
            for engine in ("sim", "vllm-core")
            for rate in ("calls_per_cpu_s", "steps_per_cpu_s")
        ]
        overhead = ", ".join(f"{row['ratio']:.2f}" for row in cell["overhead"].values())
        rows.append(
            f"| {cell['cell']}: {cell['sessions']} sessions at {cell['rate_per_s']:g}/s, "
            f"{cell['recomputed_share']:.0%} recomputed | {cell['calls']:,} | {cell['steps']:,} | "
            f"{' | '.join(speeds)} | {cell['speedup']:,.0f} times as fast | {overhead} |"
        )
    text = (
        f"Both engines ran the same cells (`{found['workload']}` on `{found['profile']}`, stock "
        "policies) and logged the same events. Per CPU second: medians of "
        f"{found['repeats']} alternating rounds on one busy machine ({host['cores']} cores of "
        f"{host['cpu']}, vLLM {host['vllm']}). The last column is the CPU time of `vllm-core` "
        "over that of a loop with vLLM's own calls alone: both with marsbench's hash of block "
        "contents, both with vLLM's default, and with that loop spared all hashing of prompts "
        "(`vllm-core` hashes each block once, vLLM again in every turn: hence ratios below 1). "
        "All numbers, and what is compared: "
        "[engines.json](engines.json), by `scripts/bench_engines.py`."
    )
    wrapped = textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False)
    return "\n".join([*rows, "", *wrapped])


def print_table(found: dict[str, Any]) -> None:
    host = found["machine"]
    print(
        f"vLLM {host['vllm']}, Python {host['python']}, {host['cores']} cores of {host['cpu']}, "
        f"load average {host['load_average']:.1f}, {found['repeats']} rounds.\n"
        f"Ratios and rates are of CPU time (time.process_time), which other work on the machine "
        f"disturbs least; wall time is only told. Both engines' times include the driver.\n"
        f"The same in both engines: {found['compared']}.\n"
    )
    for cell in found["cells"]:
        print(
            f"{cell['cell']}: {cell['sessions']} sessions at {cell['rate_per_s']:g}/s, "
            f"{cell['calls']:,} calls, {cell['steps']:,} steps, {cell['events']:,} events alike, "
            f"{cell['cached_share']:.0%} cached, {cell['recomputed_share']:.0%} of the prefill "
            f"recomputed, {cell['preemptions']} preemptions"
        )
        for engine in ("sim", "vllm-core"):
            row = cell[engine]
            print(
                f"  {engine:<12}{row['cpu_s']:>9.3f} s CPU {row['wall_s']:>9.3f} s wall "
                f"{row['calls_per_cpu_s']:>10,.1f} calls/s {row['steps_per_cpu_s']:>12,.0f} steps/s"
            )
        met = "met" if cell["speedup"] >= LEAST_SPEEDUP else "MISSED"
        print(f"  sim is {cell['speedup']:.0f} times as fast (target {LEAST_SPEEDUP:g}: {met})")
        for name, row in cell["overhead"].items():
            met = "met" if row["ratio"] <= MOST_OVERHEAD else "MISSED"
            print(
                f"  hash: {name:<18} vllm-core {row['vllm-core']['cpu_s']:.3f} s CPU, bare "
                f"{row['bare']['cpu_s']:.3f} s: {row['ratio']:.3f} (target {MOST_OVERHEAD:g}: {met})"
            )
        print(
            "  vllm-core as it is over bare vLLM with its default hash: "
            f"{cell['as_shipped_over_vllm_default']:.3f}\n"
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=6, help="of each cell")
    parser.add_argument("--turns", type=int, default=0, help="first turns of each; 0 = all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULT.name} and its table in speed.md"
    )
    given = parser.parse_args()
    if given.sessions < 1 or given.repeats < 1 or given.turns < 0:
        parser.error("--sessions and --repeats must be positive, --turns not negative")
    return given


def main() -> int:
    given = options()
    try:
        if given.write:
            read_block(TABLES, BLOCK)  # before minutes are spent
        found = {
            "engines_version": 1,
            "machine": machine(),
            "workload": WORKLOAD,
            "profile": PROFILE,
            "tool_cores": TOOL_CORES,
            "repeats": given.repeats,
            "clock": "time.process_time for ratios and rates; wall = time.perf_counter",
            "compared": COMPARED,
            "cells": [measure(case, given.repeats) for case in cases(given.sessions, given.turns)],
        }
    except MarsbenchError as error:
        print(f"bench_engines: {error}", file=sys.stderr)
        return 1
    print_table(found)
    text = json.dumps(found, indent=1) + "\n"
    if given.json:
        given.json.write_text(text, encoding="utf-8")
    if given.write:
        RESULT.write_text(text, encoding="utf-8")
        write_block(TABLES, BLOCK, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
