"""How fast is the simulator? LLM calls per second and peak memory, beside Dynamo's replay simulator.

Both replay the same exported trace in the same closed loop, with the same KV blocks, one after the
other, in fresh processes. Wall time depends on what else the machine does; CPU time does far less,
so both are reported. Dynamo needs Python 3.12 and gets a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DYNAMO = "1.4.2"
PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
TURNS = {"mixture": [[1.0, 3.276, 0.5]], "low": 5, "high": 200}
"""Lognormal, mean 30 turns a session; all else as in the workload swe-bench."""
BLOCK_SIZE = 64
BLOCKS = (16_384, 65_536)
"""1.0 million tokens, in which 64 sessions thrash, and 4.2 million, which hold them all."""
LOOP = 64
SIZES = (100, 1_000, 10_000)
BUSY = 0.5
"""Load average per core from which on wall times say little."""
BLOCK = "speed"
Numbers = dict[str, float]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=1_000, help="of the side by side trace")
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="for the scaling table")
    parser.add_argument("--compiled", type=Path, help="folder made by scripts/compile_core.py")
    parser.add_argument("--no-dynamo", action="store_true")
    parser.add_argument("--dynamo-venv", type=Path, default=ROOT / ".venv-dynamo")
    parser.add_argument("--python312", default="python3.12", help="to make --dynamo-venv with")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--readme", type=Path, help=f"put the tables into its block {BLOCK!r}")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- in worker processes -------------------------------------------------------------------


def make(num: str, path: str) -> Numbers:
    """Generate a trace and export it in the format both simulators read."""
    from marsbench.trace.export import export
    from workloads.synthetic.workload import GeneratedWorkload

    sessions = GeneratedWorkload("swe-bench").variant(turns=TURNS).sessions(int(num), 0)
    with Path(path).open("wb") as stream:
        export(sessions, stream, "trie")
    return {}


def simulate(path: str, num_blocks: str) -> Numbers:
    """Replay a trace and report what its engine took. Nothing runs beside it in this process."""
    from marsbench.arrival import ArrivalPlan
    from marsbench.engine.base import EngineConfig
    from marsbench.engine.plan import CellPlan
    from marsbench.engine.profile import load_profile
    from marsbench.engine.sim.core import SimCore
    from marsbench.engine.virtual import VirtualEngine
    from marsbench.events import Kind
    from marsbench.records import EventLog
    from marsbench.system import Policies
    from marsbench.tools.recorded import Recorded
    from marsbench.trace.source import open_trace

    sessions = list(open_trace(Path(path))[1])
    config = EngineConfig(num_blocks=int(num_blocks), block_size=BLOCK_SIZE)
    cost = load_profile(PROFILE).step_cost()
    log = EventLog()
    plan = CellPlan(
        sessions=tuple(sessions),
        arrivals=ArrivalPlan(times_ps=None, closed_loop=LOOP),
        policies=Policies(),
        flags=config,
        cost=cost,
        tools=Recorded(),
    )
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    VirtualEngine(SimCore).run(plan, log)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    rows = log.to_numpy()
    first = rows[:, 1] == Kind.GPU_SCHED_FIRST
    cached, uncached = rows[:, 5][first].sum(), rows[:, 6][first].sum()
    return {
        "calls": int(first.sum()),
        "prompt_tokens": int(cached + uncached),
        "hit_rate": float(cached / (cached + uncached)),
        "simulated_s": int(rows[-1, 0]) / 1e12,
        "sim_wall_s": wall_s,
        "sim_cpu_s": cpu_s,
    }


WORKERS: dict[str, Callable[..., Numbers]] = {"make": make, "simulate": simulate}


# --- measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedSimulator:
    """A simulator, and how to run it on a trace; ``run`` returns its own numbers."""

    name: str
    run: Callable[[Path, int], Numbers]


def measured(command: Sequence[str], environment: dict[str, str]) -> tuple[str, Numbers]:
    """A process to its end: what it printed, its wall and CPU seconds, its peak memory.

    This process stays small: a child's peak starts at the size of the parent that made it.
    """
    with tempfile.TemporaryFile("w+") as errors:
        start_s = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"bench_sim: {' '.join(command)}\n{printed}{errors.read()}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    numbers = {"process_wall_s": wall_s, "process_cpu_s": used.ru_utime + used.ru_stime}
    return printed, numbers | {"peak_bytes": peak}


def ours(compiled: Path | None) -> TimedSimulator:
    environment = {key: value for key, value in os.environ.items() if key != "MARSBENCH_COMPILED"}
    if compiled is not None:
        environment["MARSBENCH_COMPILED"] = str(compiled.resolve())

    def run(trace: Path, num_blocks: int) -> Numbers:
        command = [sys.executable, __file__, "--worker", "simulate", str(trace), str(num_blocks)]
        printed, numbers = measured(command, environment)
        return numbers | json.loads(printed)

    return TimedSimulator("marsbench, compiled" if compiled else "marsbench, pure Python", run)


def dynamos(python: Path, folder: Path, start_cpu_s: float) -> TimedSimulator:
    """Dynamo's replay. It reports wall time alone: the CPU time of its simulation is that of the
    process less what the same command takes for one session.
    """

    def run(trace: Path, num_blocks: int) -> Numbers:
        report = folder / "dynamo.json"
        engine = json.dumps({"block_size": BLOCK_SIZE, "num_gpu_blocks": num_blocks})
        command = [
            *(str(python), "-m", "dynamo.replay", str(trace)),
            *("--trace-format", "applied_compute_agentic", "--replay-concurrency", str(LOOP)),
            *("--trace-block-size", str(BLOCK_SIZE), "--extra-engine-args", engine),
            *("--report-json", str(report)),
        ]
        _, numbers = measured(command, dict(os.environ))
        told = json.loads(report.read_text(encoding="utf-8"))
        return numbers | {
            "calls": told["completed_requests"],
            "prompt_tokens": told["total_input_tokens"],
            "hit_rate": told["prefix_cache_reused_ratio"],
            "simulated_s": told["duration_ms"] / 1e3,
            "sim_wall_s": told["wall_time_ms"] / 1e3,
            "sim_cpu_s": numbers["process_cpu_s"] - start_cpu_s,
        }

    return TimedSimulator(f"Dynamo {DYNAMO} replay", run)


def dynamo_python(venv: Path, python312: str) -> Path:
    """The Python of Dynamo's environment, which is made if it is not there."""
    python = venv / "bin" / "python"
    ask = "from importlib.metadata import version; print(version('ai-dynamo'))"
    if not python.exists():
        try:
            subprocess.run([python312, "-m", "venv", str(venv)], check=True)
            packages = [f"ai-dynamo=={DYNAMO}"]
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(
                f"bench_sim: cannot install Dynamo into {venv}: {error}; give a Python 3.12 with "
                "--python312 (and remove the folder), or use --no-dynamo"
            )
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    if done.stdout.strip() != DYNAMO:
        found = done.stdout.strip() or "none"
        sys.exit(f"bench_sim: {venv} holds ai-dynamo {found}, not {DYNAMO}; remove the folder")
    return python


def trace_of(folder: Path, num: int) -> Path:
    path = folder / f"{num}.jsonl"
    if not path.exists():
        command = [sys.executable, __file__, "--worker", "make", str(num), str(path)]
        measured(command, dict(os.environ))
    return path


def medians(runs: Sequence[Numbers]) -> dict[str, Any]:
    """Median of each number, and all wall and CPU times of the simulation."""
    found: dict[str, Any] = {
        key: statistics.median(run[key] for run in runs) for key in sorted(runs[0])
    }
    for kind in ("wall", "cpu"):
        found[f"calls_per_{kind}_s"] = found["calls"] / found[f"sim_{kind}_s"]
        found[f"all_sim_{kind}_s"] = [run[f"sim_{kind}_s"] for run in runs]
    return found


def alternate(
    contenders: Sequence[TimedSimulator], trace: Path, num_blocks: int, repeats: int
) -> list[dict[str, Any]]:
    """Each contender in turn, again and again, so that a busy spell hits all of them."""
    runs: dict[str, list[Numbers]] = {contender.name: [] for contender in contenders}
    for number in range(repeats):
        for contender in contenders:
            done = contender.run(trace, num_blocks)
            runs[contender.name].append(done)
            rate = done["calls"] / done["sim_cpu_s"]
            print(
                f"  {trace.stem} sessions, {num_blocks} blocks, run {number + 1}: "
                f"{contender.name}: {rate:,.0f} calls per CPU second",
                file=sys.stderr,
            )
    return [{"simulator": name} | medians(found) for name, found in runs.items()]


# --- reporting ------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def side_by_side_table(results: Sequence[dict[str, Any]]) -> list[str]:
    header = ["KV blocks", "simulator", "calls per CPU s", "calls per wall s", "process CPU"]
    header += ["process wall", "peak memory", "simulated", "prefix hits"]
    rows = [
        [
            f"{result['num_blocks']:,}",
            row["simulator"],
            f"{row['calls_per_cpu_s']:,.0f}",
            f"{row['calls_per_wall_s']:,.0f}",
            f"{row['process_cpu_s']:.1f} s",
            f"{row['process_wall_s']:.1f} s",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
            f"{row['simulated_s'] / 3600:.1f} h",
            f"{row['hit_rate']:.2f}",
        ]
        for result in results
        for row in result["runs"]
    ]
    return table(header, rows)


def ratios(results: Sequence[dict[str, Any]]) -> list[str]:
    """One line per contender and KV size: how many times Dynamo's speed."""
    lines = []
    for result in results:
        *own, dynamo = result["runs"]
        for row in own if dynamo["simulator"].startswith("Dynamo") else ():
            cpu, wall = (row[key] / dynamo[key] for key in ("calls_per_cpu_s", "calls_per_wall_s"))
            process = dynamo["process_cpu_s"] / row["process_cpu_s"]
            memory = row["peak_bytes"] / dynamo["peak_bytes"]
            row["times_dynamo"] = {"cpu": cpu, "wall": wall, "process_cpu": process}
            lines.append(
                f"- {row['simulator']}, {result['num_blocks']:,} blocks: {cpu:.1f}x Dynamo's calls "
                f"per CPU second, {wall:.1f}x per wall second, {memory:.2f} of its memory."
            )
    return lines


def scaling_table(results: Sequence[dict[str, Any]]) -> list[str]:
    header = ["sessions", "LLM calls", "simulator", "CPU µs per call", "calls per CPU s"]
    rows = [
        [
            f"{result['sessions']:,}",
            f"{row['calls']:,.0f}",
            row["simulator"],
            f"{1e6 / row['calls_per_cpu_s']:.1f}",
            f"{row['calls_per_cpu_s']:,.0f}",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        ]
        for result in results
        for row in result["runs"]
    ]
    return table([*header, "peak memory"], rows)


def report(found: dict[str, Any]) -> str:
    host = found["machine"]
    lines: list[str] = []
    if found["side_by_side"]:
        calls = found["side_by_side"][0]["runs"][0]["calls"]
        lines.append(
            f"{found['sessions']:,} generated sessions, {calls:,.0f} LLM calls, closed loop of "
            f"{LOOP}, KV blocks of {BLOCK_SIZE} tokens; the same exported trace for all."
        )
        lines += ["", *side_by_side_table(found["side_by_side"]), ""]
        lines += [*ratios(found["side_by_side"]), ""]
    if found["scaling"]:
        blocks = found["scaling"][0]["num_blocks"]
        lines += [f"Cost per call by number of sessions ({blocks:,} blocks):", ""]
        lines += [*scaling_table(found["scaling"]), ""]
    lines.append(
        f"Medians of {found['repeats']} alternating runs, {host['cores']} cores of {host['cpu']}, "
        f"Python {host['python']}; load average {found['load_before']:.1f} before and "
        f"{found['load_after']:.1f} after, so that wall times include waiting for a core. Calls "
        "per second are of the simulation alone; process figures include start-up and reading the "
        "trace. The CPU time of Dynamo's simulation is its process's less that of a process that "
        "replays one session. Step times differ: marsbench models a GPU (the profile "
        f"{PROFILE}), Dynamo uses its default polynomial. All numbers: results/reference/speed.json; "
        "again: `scripts/bench_sim.py`. The compiled core is opt-in: `scripts/compile_core.py` makes "
        "it, `MARSBENCH_COMPILED=build/compiled` uses it, a changed source makes it an error."
    )
    return "\n".join(
        line
        if line.startswith("|")
        else textwrap.fill(line, 100, subsequent_indent="  " * (line[:1] == "-"))
        for line in lines
    )


def warn_if_busy() -> float:
    load = os.getloadavg()[0]
    if load > BUSY * (os.cpu_count() or 1):
        print(
            f"bench_sim: load average {load:.1f} on {os.cpu_count()} cores: something else runs; "
            "trust CPU times, not wall times",
            file=sys.stderr,
        )
    return load


def main() -> None:
    from marsbench.errors import MarsbenchError
    from marsbench.markdown import read_block, write_block

    given = options()
    if given.worker:
        print(json.dumps(WORKERS[given.worker[0]](*given.worker[1:])))
        return
    if given.readme:
        try:
            read_block(given.readme, BLOCK)  # before minutes are spent
        except MarsbenchError as error:
            sys.exit(f"bench_sim: {error}")
    found: dict[str, Any] = {"speed_version": 1, "machine": machine(), "repeats": given.repeats}
    found |= {"sessions": given.sessions, "load_before": warn_if_busy()}
    own = [ours(None), *([ours(given.compiled)] if given.compiled else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everyone = list(own)
        if not given.no_dynamo:
            python = dynamo_python(given.dynamo_venv, given.python312)
            starter, one = dynamos(python, folder, 0.0), trace_of(folder, 1)
            starts = [starter.run(one, BLOCKS[0])["process_cpu_s"] for _ in range(given.repeats)]
            found["dynamo"] = {"version": DYNAMO, "start_cpu_s": statistics.median(starts)}
            everyone.append(dynamos(python, folder, statistics.median(starts)))
        trace = trace_of(folder, given.sessions)
        found["side_by_side"] = [
            {"num_blocks": n, "runs": alternate(everyone, trace, n, given.repeats)}
            for n in given.blocks
        ]
        found["scaling"] = [
            {"sessions": size, "num_blocks": given.blocks[-1],
             "runs": alternate(own, trace_of(folder, size), given.blocks[-1], given.repeats)}
            for size in given.sizes
        ]  # fmt: skip
    found["load_after"] = warn_if_busy()
    text = report(found)
    print(text)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.readme:
        write_block(given.readme, BLOCK, text)


if __name__ == "__main__":
    main()
