"""What the scheduler plug-in costs: time of vLLM's scheduler per step, and throughput of a server.

``steps``: vLLM's own classes without a model, stock, with null policies and with all of MARS, in one
process, blocks of steps in turn. A step is add_request, schedule and update_from_output. ``server``:
real servers with a tiny model on the CPU, the same closed loop of sessions to each in turn, and the
CPU time of their engine processes. Ratios are of neighbours in time; the median is told, with an
interval of 95 %.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("vllm") is None:  # not the environment that has vLLM: start again in that one
    vllm_python = Path(__file__).resolve().parent.parent / ".venv-vllm" / "bin" / "python"
    if not vllm_python.exists():
        sys.exit("bench_plugin: needs vLLM: run scripts/setup_vllm_cpu.sh, which makes .venv-vllm")
    os.execv(vllm_python, [str(vllm_python), *sys.argv])  # noqa: S606

import numpy as np

from marsbench.engine.base import EngineConfig
from marsbench.engine.live.inside import Inside
from marsbench.engine.live.server import Server, tail, vllm_command
from marsbench.engine.live.supervisor import descendants
from marsbench.engine.live.tiny_model import write_tiny_model
from marsbench.engine.profile import load_profile
from marsbench.engine.vllm.runtime import build_scheduler, quietly, require_vllm
from marsbench.errors import EngineError, MarsbenchError

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "reference" / "plugin.json"
STEP_PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
SERVER_PROFILE = "tiny-cpu"
BLOCK = 16


# --- numbers ---------------------------------------------------------------------------------


def interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median; the value itself where there is only one."""
    found = np.asarray(values, dtype=float)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(found, (draws, len(found))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def ratio(ours: Sequence[float], stock: Sequence[float]) -> dict[str, float]:
    """Median of the quotients of neighbours in time, with its interval."""
    quotients = [a / b for a, b in zip(ours, stock, strict=True)]
    low, high = interval(quotients)
    return {"ratio": statistics.median(quotients), "low": low, "high": high}


def summary(runs: dict[str, list[float]], unit: str, stock: str) -> dict[str, Any]:
    """Median and all runs of each contender, and its ratio to the stock one."""
    return {
        name: {
            unit: statistics.median(values),
            "runs": values,
            **({} if name == stock else ratio(values, runs[stock])),
        }
        for name, values in runs.items()
    }


# --- steps -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
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
    DECODE: lambda n: Load(DECODE, n, 1024, 20_000, 0, 1, 1.0),
    "turns": lambda n: Load("turns", n, 2048, 64, 256, 10, 1.5),
    "pressure": lambda n: Load("pressure", n, 8192, 64, 256, 10, 0.4),
}
"""All decode, nothing else happens; sessions of ten turns with memory for all; or for 40 % of
them, so that turns wait, pins are given up and turns are preempted."""


class Lane:
    """A scheduler with its own closed loop of sessions, stepped without a model."""

    def __init__(self, name: str, scheduler: Any, load: Load, depth: int, vllm: Any) -> None:
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


STOCK, NULL, MARS = "stock", "null policies", "MARS"
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


def measure_steps(
    mode: str, load: Load, repeats: int, steps: int, vllm: Any, folder: Path
) -> dict[str, Any]:
    """Microseconds per step of each contender under one load."""
    depth = 1 if mode == "sync" else 2
    lanes = [
        Lane(name, contender.build(load.config(), vllm, folder), load, depth, vllm)
        for name, contender in STEP_CONTENDERS[mode].items()
    ]
    settle = 40 if load.name == DECODE else 200
    for lane in lanes:
        while lane.steps < settle or (load.name == DECODE and lane.scheduler.waiting):
            lane.step()
        lane.scheduled = lane.finished = lane.running = lane.steps = 0
        lane._waits = deque((due - settle, s, t) for due, s, t in lane._waits)  # noqa: SLF001
    runs: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    for number in range(repeats):
        gc.collect()
        gc.freeze()
        gc.disable()
        shift = number % len(lanes)
        for lane in lanes[shift:] + lanes[:shift]:
            spent_ns = sum(lane.step() for _ in range(steps))
            runs[lane.name].append(spent_ns / steps / 1000)
        gc.enable()
        gc.unfreeze()
    found = summary(runs, "us_per_step", STOCK)
    for lane in lanes:
        found[lane.name] |= {
            "scheduled_per_step": lane.scheduled / lane.steps,
            "running": lane.running / lane.steps,
            "turns": lane.finished,
        }
        lane.scheduler.shutdown()
    return {"mode": mode, "load": load.name, "sessions": load.sessions, "contenders": found}


def step_cells(given: argparse.Namespace) -> list[dict[str, Any]]:
    vllm = vllm_classes()
    cells = []
    with tempfile.TemporaryDirectory() as name:
        for mode in given.modes:
            for load_name in given.loads:
                for sessions in given.running:
                    load = LOADS[load_name](sessions)
                    steps = max(given.steps * 16 // (16 + sessions), 10)
                    cell = measure_steps(mode, load, given.repeats, steps, vllm, Path(name))
                    cells.append(cell)
                    print_step_cell(cell)
    return cells


def print_step_cell(cell: dict[str, Any]) -> None:
    parts = []
    for name, row in cell["contenders"].items():
        told = f"{name} {row['us_per_step']:8.1f} us"
        if "ratio" in row:
            told += f" ({row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}])"
        parts.append(told + f" run {row['running']:.0f}")
    print(
        f"{cell['mode']:13} {cell['load']:8} {cell['sessions']:4}: {'; '.join(parts)}", flush=True
    )


# --- servers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """A closed loop: every session sends its next turn as soon as it has the answer."""

    sessions: int = 16
    turns: int = 2
    first_tokens: int = 256
    new_tokens: int = 64
    output_tokens: int = 200

    @property
    def tokens(self) -> int:
        return self.sessions * self.turns * self.output_tokens


class Engine:
    """A started server, and the CPU time of the process that schedules."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.server = server
        self.url = server.command.url
        self.pid = engine_process(server.pid)

    def cpu_s(self) -> float:
        """User and system time of the engine process, all threads."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def engine_process(root: int) -> int:
    """The process below ``root`` that runs vLLM's engine core."""
    for pid in descendants(root):
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise EngineError("the server has no process that is called EngineCore")


async def send_session(http: Any, url: str, traffic: Traffic, salt: str, session: int) -> None:
    rng = np.random.default_rng([hash_of(salt), session])
    context: list[int] = []
    for turn in range(traffic.turns):
        new = traffic.new_tokens if turn else traffic.first_tokens
        context += rng.integers(300, 1000, new).tolist()
        hints = {
            "marsbench_session": f"{salt}/{session}",
            "marsbench_turn": turn,
            "marsbench_tools": ["bash"],
            "marsbench_last": int(turn + 1 == traffic.turns),
        }
        body = {
            "model": "marsbench", "prompt": context, "max_tokens": traffic.output_tokens,
            "ignore_eos": True, "temperature": 0, "session_id": f"{salt}/{session}",
            "vllm_xargs": hints,
        }  # fmt: skip
        async with http.post(f"{url}/v1/completions", json=body) as reply:
            answer = await reply.json()
        made = answer.get("usage", {}).get("completion_tokens")
        if made != traffic.output_tokens:
            raise EngineError(f"{url}: asked for {traffic.output_tokens} tokens, got {answer}")


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % (1 << 32)


async def play(engine: Engine, traffic: Traffic, salt: str) -> tuple[float, float]:
    """Output tokens per second, and engine CPU microseconds per output token."""
    import aiohttp

    # A connection each: one kept open may be closed just as the next turn is sent into it.
    limit = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=limit, timeout=timeout) as http:
        cpu_s, wall_s = engine.cpu_s(), time.perf_counter()
        sends = (send_session(http, engine.url, traffic, salt, k) for k in range(traffic.sessions))
        try:
            await asyncio.gather(*sends)
        except (aiohttp.ClientError, TimeoutError) as error:
            engine.server.check_alive()
            end = tail(engine.server.log_path, 15)
            raise EngineError(f"{engine.name}: {error!r}; its log ends:\n{end}") from error
        cpu_s, wall_s = engine.cpu_s() - cpu_s, time.perf_counter() - wall_s
    return traffic.tokens / wall_s, cpu_s * 1e6 / traffic.tokens


def server_command(name: str, mode: str, folder: Path) -> Any:
    """A server of the tiny model: stock, or with the plug-in as ``marsbench run`` gives it."""
    model = write_tiny_model(folder / "model", max_model_len=4096)
    config = load_profile(SERVER_PROFILE).engine_config(max_model_len=4096)
    extra = ["--no-async-scheduling"] if mode == "sync" else []
    inside = Inside({NULL: "vllm", MARS: "mars"}.get(name, ""), SERVER_PROFILE)
    scheduler = None
    if name != STOCK:
        scheduler = inside.scheduler_cls(extra)
        address = f"ipc://{folder}/{name.replace(' ', '-')}"
        extra += inside.flags({"listen": f"{address}-driver", "publish": f"{address}-engine"})
    command = vllm_command(
        python=Path(sys.executable), model=str(model), engine=config, cpu=True,
        random_weights=True, scheduler_cls=scheduler, extra=extra,
    )  # fmt: skip
    command = inside.importable(command)
    # One thread each, not tied to a core: several that share one spin while they wait.
    return replace(command, env={**command.env, "VLLM_CPU_OMP_THREADS_BIND": "nobind"})


def measure_servers(mode: str, traffic: Traffic, repeats: int, folder: Path) -> dict[str, Any]:
    """Throughput and engine CPU time of three servers that run side by side, one loaded at a time."""
    names = (STOCK, NULL, MARS)
    speed: dict[str, list[float]] = {name: [] for name in names}
    cpu_us: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = {}
        for name in names:
            log = folder / f"{mode}-{name.replace(' ', '-')}.log"
            servers[name] = Server(server_command(name, mode, folder), log)
            stack.callback(servers[name].stop)
        for server in servers.values():
            server.wait_ready()
        engines = [Engine(name, server) for name, server in servers.items()]
        for engine in engines:
            asyncio.run(play(engine, traffic, "warm-up"))
        for number in range(repeats):
            shift = number % len(engines)
            for engine in engines[shift:] + engines[:shift]:
                tokens_per_s, us = asyncio.run(play(engine, traffic, f"run-{number}"))
                speed[engine.name].append(tokens_per_s)
                cpu_us[engine.name].append(us)
    return {
        "mode": mode,
        "traffic": traffic.__dict__,
        "tokens_per_s": summary(speed, "tokens_per_s", STOCK),
        "engine_cpu_us_per_token": summary(cpu_us, "cpu_us", STOCK),
    }


def print_server_cell(cell: dict[str, Any]) -> None:
    for what, unit in (("tokens_per_s", "tokens/s"), ("engine_cpu_us_per_token", "CPU us/token")):
        parts = []
        for name, row in cell[what].items():
            told = f"{name} {next(iter(row.values())):8.1f} {unit}"
            if "ratio" in row:
                told += f" ({row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}])"
            parts.append(told)
        print(f"server, {cell['mode']:6}: {'; '.join(parts)}", flush=True)


def server_cells(given: argparse.Namespace) -> list[dict[str, Any]]:
    cells = []
    with tempfile.TemporaryDirectory() as name:
        for mode in given.modes:
            traffic = Traffic(sessions=given.sessions)
            cell = measure_servers(mode, traffic, given.repeats, Path(name))
            cells.append(cell)
            print_server_cell(cell)
    return cells


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
    }


def merged(old: dict[str, Any], part: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The stored results with the cells of ``part`` that were measured now in place of theirs."""

    def key(cell: dict[str, Any]) -> tuple[Any, ...]:
        return cell["mode"], cell.get("load"), cell.get("sessions")

    new = {key(cell) for cell in cells}
    kept = [cell for cell in old.get(part, []) if key(cell) not in new]
    return {"plugin_version": 1, **old, part: [*kept, *cells]}


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["steps", "server"])
    parser.add_argument("--repeats", type=int, default=9, help="rounds of all contenders")
    parser.add_argument("--modes", nargs="+", choices=list(STEP_CONTENDERS), default=None)
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--running", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument(
        "--steps", type=int, default=400, help="a round of one session; less of more"
    )
    parser.add_argument("--sessions", type=int, default=16, help="at once, of a server")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--write", action="store_true", help=f"put them into {RESULT.name}")
    given = parser.parse_args(arguments)
    if min(given.repeats, given.steps, given.sessions, *given.running) < 1:
        parser.error("--repeats, --steps, --sessions and --running must be positive")
    given.modes = given.modes or list(STEP_CONTENDERS)
    return given


def main() -> int:
    given = options()
    host = machine()
    try:
        cells = step_cells(given) if given.part == "steps" else server_cells(given)
    except MarsbenchError as error:
        print(f"bench_plugin: {error}", file=sys.stderr)
        return 1
    for cell in cells:
        cell |= {"machine": host, "repeats": given.repeats}
    for path in [*([given.json] if given.json else []), *([RESULT] if given.write else [])]:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        text = json.dumps(merged(old, given.part, cells), indent=1) + "\n"
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
