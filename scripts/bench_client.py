"""How punctual is the live client? Send-time error and achieved rate against a fake server.

One turn a session, Poisson arrivals fixed in advance, the whole path of a live cell (driver, client,
records); the server runs in a process of its own. With --vllm-python PYTHON the same load is also
sent by `vllm bench serve` of that environment, and with --aiperf COMMAND by that `aiperf`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.arrival import ArrivalPlan, arrival_rng, arrivals
from marsbench.core import PS_PER_S, Session, Turn
from marsbench.engine.base import EngineConfig
from marsbench.engine.live.client import Client
from marsbench.engine.live.server import ServerCommand, free_port, running
from marsbench.engine.live.tiny_model import write_tiny_model
from marsbench.engine.live.wall import Site, run_live
from marsbench.engine.plan import CellPlan
from marsbench.records import EventLog
from marsbench.system import Policies
from marsbench.tables import build_tables
from marsbench.tools.recorded import Recorded

VLLM_BENCH = (
    "import sys; from vllm.benchmarks.serve import add_cli_args, main; import argparse; "
    "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args(sys.argv[1:]))"
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--itl-ms", type=float, default=5.0)
    parser.add_argument("--max-p99-ms", type=float, default=None, help="exit 1 if p99 is above it")
    parser.add_argument("--vllm-python", type=Path, default=None)
    parser.add_argument("--aiperf", metavar="COMMAND", help="the executable of AIPerf")
    return parser.parse_args()


def load(given: argparse.Namespace) -> tuple[list[Session], ArrivalPlan]:
    """Sessions of one turn, and when they arrive."""
    turn = Turn(given.prompt_tokens, given.output_tokens)
    sessions = [Session(f"s{index}", (turn,)) for index in range(int(given.rate * given.seconds))]
    rng = arrival_rng(0, "bench")
    return sessions, arrivals("poisson", sessions, rate_per_s=given.rate, rng=rng, params={})


def bare_timer_p99_ms(plan: ArrivalPlan) -> float:
    """Lateness of a loop that does nothing but wake at these times: this machine's own share."""
    late_s: list[float] = []

    async def wake() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for at_ps in plan.times_ps or ():
            due_s = start_s + at_ps / PS_PER_S
            await asyncio.sleep(due_s - loop.time())
            late_s.append(loop.time() - due_s)

    asyncio.run(wake())
    return float(np.percentile(late_s, 99)) * 1e3


def ours(url: str, given: argparse.Namespace) -> dict[str, float]:
    sessions, plan = load(given)
    floor_ms = bare_timer_p99_ms(plan)
    config, policies, log = EngineConfig(num_blocks=1 << 16), Policies(), EventLog()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    outcome = run_live(
        CellPlan(
            sessions=tuple(sessions),
            arrivals=plan,
            policies=policies,
            flags=config,
            tools=Recorded(),
        ),
        log,
        Site(connect=lambda clock: Client(url, "fake", clock=clock), warm_up_turns=16),
    )
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    turns = build_tables(log).turns
    late_ms = np.array(outcome.send_error_s) * 1e3
    ttft_ms = (turns["first_token_s"] - turns["ready_s"]).to_numpy() * 1e3
    sent_s = np.array([done.sent_ps for _, done in outcome.completions]) / PS_PER_S
    return {
        "requests": len(sessions),
        "failed": len(sessions) - int(turns["end_s"].notna().sum()),
        "rate offered": (len(sessions) - 1) * PS_PER_S / max(plan.times_ps or (1,)),
        "rate sent": (len(sessions) - 1) / float(sent_s.max() - sent_s.min()),
        "bare timer p99 (ms)": floor_ms,
        "send error p50 (ms)": float(np.percentile(late_ms, 50)),
        "send error p99 (ms)": float(np.percentile(late_ms, 99)),
        "send error max (ms)": float(late_ms.max()),
        "TTFT p50 (ms)": float(np.percentile(ttft_ms, 50)),
        "TTFT p99 (ms)": float(np.percentile(ttft_ms, 99)),
        "CPU (share of a core)": cpu_s / wall_s,
    }


def vllms(url: str, given: argparse.Namespace, folder: Path) -> dict[str, float] | str:
    model = write_tiny_model(folder / "model")
    command = [
        *(str(given.vllm_python), "-c", VLLM_BENCH, "--backend", "openai", "--base-url", url),
        *("--endpoint", "/v1/completions", "--model", "fake", "--tokenizer", str(model)),
        *("--dataset-name", "random", "--random-input-len", str(given.prompt_tokens)),
        *("--random-output-len", str(given.output_tokens), "--ignore-eos", "--seed", "0"),
        *("--request-rate", str(given.rate), "--num-prompts", str(int(given.rate * given.seconds))),
        *("--percentile-metrics", "ttft", "--metric-percentiles", "50,99", "--save-result"),
        *("--result-dir", str(folder), "--result-filename", "result.json", "--disable-tqdm"),
        *("--ready-check-timeout-sec", "0"),
    ]
    found = report_of(command, folder / "result.json")
    if isinstance(found, str):
        return found
    return {
        "requests": found["completed"] + found.get("failed", 0),
        "failed": found.get("failed", 0),
        "rate completed": found["request_throughput"],
        "TTFT p50 (ms)": found["p50_ttft_ms"],
        "TTFT p99 (ms)": found["p99_ttft_ms"],
    }


def aiperfs(url: str, given: argparse.Namespace, folder: Path) -> dict[str, float] | str:
    model = write_tiny_model(folder / "model")
    command = [
        *(given.aiperf, "profile", "--url", url, "--model", "fake", "--tokenizer", str(model)),
        *("--endpoint-type", "completions", "--streaming", "--use-server-token-count"),
        *("--random-seed", "0"),
        *("--isl", str(given.prompt_tokens), "--isl-stddev", "0"),
        *("--osl", str(given.output_tokens), "--osl-stddev", "0", "--arrival-pattern", "poisson"),
        *("--request-rate", str(given.rate)),
        *("--request-count", str(int(given.rate * given.seconds))),
        *("--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--export-level", "summary"),
        *("--artifact-dir", str(folder / "aiperf")),
    ]
    # Told to stay offline, AIPerf takes no tokenizer from a folder; this one needs no network.
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    env = {key: value for key, value in os.environ.items() if key not in offline}
    found = report_of(command, folder / "aiperf" / "profile_export_aiperf.json", env)
    if isinstance(found, str):
        return found
    return {
        "requests": found["completed_request_count"]["avg"],
        "failed": found["completed_request_count"]["avg"] - found["request_count"]["avg"],
        "rate completed": found["request_throughput"]["avg"],
        "TTFT p50 (ms)": found["time_to_first_token"]["p50"],
        "TTFT p99 (ms)": found["time_to_first_token"]["p99"],
    }


def report_of(
    command: list[str], report: Path, env: dict[str, str] | None = None
) -> dict[str, Any] | str:
    """What another client wrote into ``report``, or why it did not."""
    if shutil.which(command[0]) is None:
        return f"skipped: there is no executable {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode or not report.exists():
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        telling = [line for line in lines if "ERROR" in line] or lines or [""]
        return f"skipped: it ended with status {done.returncode}: {telling[-1]}"
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def main() -> None:
    given = options()
    port = free_port()
    fake = (sys.executable, "-m", "marsbench.engine.live.fake_server", "--port", str(port))
    timing = ("--ttft-ms", str(given.ttft_ms), "--itl-ms", str(given.itl_ms))
    command = ServerCommand((*fake, *timing), f"http://127.0.0.1:{port}", "fake")
    with tempfile.TemporaryDirectory() as name, running(command, Path(name, "server.log")):
        columns: dict[str, dict[str, float] | str] = {"marsbench": ours(command.url, given)}
        if given.vllm_python is not None:
            columns["vllm bench serve"] = vllms(command.url, given, Path(name))
        if given.aiperf is not None:
            columns["AIPerf"] = aiperfs(command.url, given, Path(name))
    for title, column in columns.items():
        print(f"{title}:")
        if isinstance(column, str):
            print(f"  {column}")
            continue
        for key, value in column.items():
            print(f"  {key:24} {value:10.2f}")
    late_ms = columns["marsbench"]["send error p99 (ms)"]  # type: ignore[index]
    if given.max_p99_ms is not None and late_ms > given.max_p99_ms:
        sys.exit(f"send error p99 {late_ms:.2f} ms is above {given.max_p99_ms:g} ms")


if __name__ == "__main__":
    main()
