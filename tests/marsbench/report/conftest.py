"""Small run folders in which how much slower each system is was put in by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from marsbench.core import to_ps
from marsbench.events import Kind
from marsbench.metrics import CellFacts, summarise
from marsbench.records import EventLog
from marsbench.runfolder import RunFolder
from marsbench.tables import CellKey, build_tables

KEY = CellKey("swe", "mars", "sim", "h100", 0.5, 0.25, 0, 16)


def synthetic_log(factor: float, seed: int, num_sessions: int, num_turns: int) -> EventLog:
    """Sessions whose queueing and recompute grow with ``factor``; the rest is equal for all."""
    rng = np.random.default_rng(seed)
    log = EventLog()
    bash = log.intern("bash")
    rows: list[tuple] = []
    last = 0.0
    for index in range(num_sessions):
        log.session_ids.append(f"s{index}")
        now = index * 4.0
        rows.append((now, Kind.SESSION_ARRIVE, index, -1, -1, 1000, -1, -1))
        rows.append((now, Kind.SESSION_ADMIT, index))
        for turn in range(num_turns):
            queue, prefill, decode, tool = rng.exponential([1.0, 0.6, 2.0, 1.5])
            prompt = 1000 * (turn + 1)
            lost = int(min(0.8, 0.1 * factor) * prompt)
            marks = np.cumsum(
                [now, 0, factor * queue, factor * prefill, decode, 0.2, tool]
            ).tolist()
            rows.append((now, Kind.TURN_READY, index, turn, -1, prompt))
            rows.append((marks[1], Kind.GPU_SUBMIT, index, turn, -1, prompt))
            rows.append((marks[2], Kind.GPU_SCHED_FIRST, index, turn, -1, prompt - 200 - lost, 0))
            rows.append((marks[3], Kind.GPU_FIRST_TOKEN, index, turn))
            counts = (60, prompt - 200 - lost, 200 + lost, lost, 1, 0)
            rows.append((marks[4], Kind.GPU_END, index, turn, -1, *counts))
            rows.append((marks[4], Kind.TOOL_ENQUEUED, index, turn, 0, bash, bash))
            rows.append((marks[5], Kind.TOOL_START, index, turn, 0, bash, bash))
            rows.append((marks[6], Kind.TOOL_END, index, turn, 0, bash, bash, 0, to_ps(tool)))
            now = marks[6]
        rows.append((now, Kind.SESSION_END, index, -1, -1, 0))
        last = max(last, now)
    for time_s in np.arange(1.0, last, max(last / 300, 0.5)).tolist():
        wave = 300 + int(200 * np.sin(time_s / 10) + 20 * factor)
        pinned = int(100 * np.cos(time_s / 25) ** 2)
        payload = (0, wave, pinned, 250, 1000 * wave, 0)
        rows.append((time_s, Kind.KV_STATS, -1, -1, -1, *payload))
    for row in sorted(rows, key=lambda row: row[0]):
        log.append(to_ps(row[0]), *row[1:])
    log.append(to_ps(last), Kind.RUN_END, -1, -1, -1, 1, 0, 0, to_ps(last / 2), 1000, 16)
    return log


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Writes a run folder: ``factors`` = how much slower each system queues and prefills."""

    def make(factors, *, loads=(0.5,), seeds=(0,), run_id="r1", num_sessions=40, num_turns=3):
        path = tmp_path_factory.mktemp(run_id) / "run"
        folder = RunFolder(path, run_id)
        index = 0
        for load in loads:
            for seed in seeds:
                logs = {
                    name: synthetic_log(factor * (1 + load), seed, num_sessions, num_turns)
                    for name, factor in {"ideal": 0.0, **factors}.items()
                }
                ideal = build_tables(logs.pop("ideal")).sessions["latency_s"].to_numpy()
                for system, log in logs.items():
                    tables = build_tables(log, ideal_s=ideal)
                    key = replace(KEY, system=system, load=load, rate_per_s=load / 2, seed=seed)
                    facts = CellFacts(wall_s=0.1, theoretical_prefix_cache_hit_rate=0.93)
                    folder.write_cell(index, summarise(key, tables, facts), log, tables)
                    index += 1
        folder.finish()
        return path

    return make
