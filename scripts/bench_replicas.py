"""What replicas cost the simulator: CPU time for each LLM call, of many against one, and memory.

Every cell runs in a fresh process: N replicas with N times the sessions of one, in a closed loop with N
times its active sessions, so that each replica does the same work as the one alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

SYSTEMS = ("vllm@session-affinity", "vllm@round-robin", "vllm@lmetric", "thunderagent", "mars")
PROFILE = "h100-nvl/qwen3-coder-30b-a3b"


def cell(system: str, replicas: int, sessions: int, active: int) -> dict[str, float]:
    """Simulate one cell in this process, and say what it took."""
    from marsbench.arrival import ArrivalPlan
    from marsbench.events import Kind
    from marsbench.experiment.wiring import Setup, simulate, system_named
    from marsbench.trace.source import open_workload

    found = tuple(open_workload("swe-short").sessions(sessions * replicas, 0, "all"))
    setup = Setup("sim", PROFILE, tool_cores=16 * replicas, tools="modelled", replicas=replicas)
    plan = ArrivalPlan(times_ps=None, closed_loop=active * replicas)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    outcome = simulate(setup, system_named(system), {}, found, plan, seed=0)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    calls = outcome.log.count(Kind.GPU_END)
    return {
        "calls": calls,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "us_per_call": cpu_s / calls * 1e6,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured(system: str, replicas: int, sessions: int, active: int) -> dict[str, float]:
    """The same in a process of its own."""
    given = [system, str(replicas), str(sessions), str(active)]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", *given], stdout=subprocess.PIPE, check=True
    )
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--sessions", type=int, default=157, help="for each replica")
    parser.add_argument("--active", type=int, default=32, help="for each replica")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS)
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        system, *numbers = options.worker
        print(json.dumps(cell(system, *map(int, numbers))))
        return
    rows = []
    print("system, replicas, sessions, calls, CPU s, wall s, us per call, of one replica's, MiB")
    for system in options.systems:
        base = 0.0
        for replicas in options.replicas:
            row = measured(system, replicas, options.sessions, options.active)
            base = base or row["us_per_call"]
            ratio = row["us_per_call"] / base
            rows.append({"system": system, "replicas": replicas, "ratio": ratio, **row})
            print(
                f"{system}, {replicas}, {replicas * options.sessions:,}, {row['calls']:,}, "
                f"{row['cpu_s']:.1f}, {row['wall_s']:.1f}, {row['us_per_call']:.0f}, {ratio:.2f}, "
                f"{row['peak_mib']:.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
