"""The ``engine`` part of bench_plugin: tokens per second of CPU time with each scheduler.

One vLLM engine core in this process, with a tiny random model on one CPU core: the same model
runner and the same KV memory for all contenders; only the scheduler object is exchanged, whenever
the engine is empty. A segment is the same closed loop of sessions from its first turn to its last,
so that all run the same batches. What a machine does to the model's share of the time is then no
difference between contenders: ``throughput_lost`` counts the CPU time inside the scheduler alone,
against the whole. The quotient of whole segments is told too; it is less sure and leaves nothing out.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from plugin_numbers import MARS, NULL, STOCK, interval, summary, told
from plugin_steps import in_child

from marsbench.engine.live.tiny_model import write_tiny_model
from marsbench.engine.vllm.runtime import quietly
from marsbench.errors import EngineError

PROFILE = "tiny-cpu"
BLOCK = 128
MAX_MODEL_LEN = 4096
SYSTEMS = {NULL: "vllm", MARS: "mars"}


@dataclass(frozen=True)
class Traffic:
    """Every session sends its next turn as soon as it has the answer."""

    sessions: int = 16
    turns: int = 3
    first_tokens: int = 256
    new_tokens: int = 64
    output_tokens: int = 48

    @property
    def tokens(self) -> int:
        return self.sessions * self.turns * self.output_tokens

    @property
    def blocks(self) -> int:
        """KV for all sessions at their longest, and half as much again; at least vLLM's minimum."""
        longest = self.first_tokens + self.turns * (self.new_tokens + self.output_tokens)
        return max(self.sessions * (longest // BLOCK + 1) * 3 // 2, MAX_MODEL_LEN // BLOCK)


class Segment(NamedTuple):
    """What one took."""

    cpu_s: float
    wall_s: float
    scheduler_s: float
    """CPU time within the engine's calls of the scheduler."""
    steps: int


class BenchedCore:
    """vLLM's engine core, and the schedulers it is given in turn."""

    def __init__(self, mode: str, model: Path, traffic: Traffic) -> None:
        with quietly():
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.core import EngineCore
            from vllm.v1.executor import Executor

            arguments = EngineArgs(
                model=str(model), skip_tokenizer_init=True, load_format="dummy",
                enforce_eager=True, block_size=BLOCK, num_gpu_blocks_override=traffic.blocks + 1,
                max_model_len=MAX_MODEL_LEN, max_num_seqs=max(traffic.sessions, 1),
                async_scheduling=mode == "async", enable_prefix_caching=True,
            )  # fmt: skip
            self._config = arguments.create_engine_config()
            self._core: Any = EngineCore(
                self._config, Executor.get_class(self._config), log_stats=False
            )
        self._mode = mode
        self._inside: dict[int, float] = {}
        """CPU seconds inside each scheduler, by its id."""
        self._schedulers = {STOCK: self._clocked(self._core.scheduler)}
        self._made = 0

    def add(self, name: str, folder: Path) -> None:
        """Make the scheduler that ``marsbench run`` gives a server for this contender."""
        from marsbench.engine.vllm.plugin import ServedScheduler, SyncServedScheduler

        stock = self._schedulers[STOCK]
        address = f"ipc://{folder}/{SYSTEMS[name]}"
        link = {"listen": f"{address}-driver", "publish": f"{address}-engine"}
        self._config.additional_config = {
            "marsbench": {"system": SYSTEMS[name], "profile": PROFILE, **link}
        }
        cls = SyncServedScheduler if self._mode == "sync" else ServedScheduler
        with quietly():
            scheduler = cls(
                vllm_config=self._config,
                kv_cache_config=stock.kv_cache_config,
                structured_output_manager=self._core.structured_output_manager,
                block_size=BLOCK,
                hash_block_size=BLOCK,
            )
        self._schedulers[name] = self._clocked(scheduler)

    def play(self, name: str, traffic: Traffic, seed: int) -> Segment:
        """One segment with one scheduler."""
        core = self._core
        core.scheduler = scheduler = self._schedulers[name]
        rng = np.random.default_rng(seed)
        size = traffic.first_tokens + traffic.turns * traffic.new_tokens
        fresh = rng.integers(0, 1000, (traffic.sessions, size)).tolist()
        contexts: list[list[int]] = [[] for _ in fresh]
        open_turns: dict[str, tuple[int, int]] = {}
        gc.collect()
        scheduler_s = self._inside.get(id(scheduler), 0.0)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for session in range(traffic.sessions):
            self._send(traffic, seed, session, 0, contexts, fresh, open_turns)
        steps = made = 0
        while open_turns or core.scheduler.has_requests() or core.batch_queue:
            outputs, executed = core.step_fn()
            core.post_step(model_executed=executed)
            steps += executed
            for output in outputs[0].outputs if outputs else ():
                session, turn = open_turns[output.request_id]
                contexts[session] += output.new_token_ids
                made += len(output.new_token_ids)
                if output.finished:
                    del open_turns[output.request_id]
                    if turn + 1 < traffic.turns:
                        self._send(traffic, seed, session, turn + 1, contexts, fresh, open_turns)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        if made != traffic.tokens:
            raise EngineError(f"{name}: asked for {traffic.tokens} tokens, got {made}")
        scheduler_s = self._inside[id(scheduler)] - scheduler_s
        return Segment(cpu_s, wall_s, scheduler_s, steps)

    def _clocked(self, scheduler: Any) -> Any:
        """The scheduler, with the CPU time of the engine's calls of it added up."""
        for name in ("add_request", "schedule", "update_from_output"):
            setattr(scheduler, name, self._clock(getattr(scheduler, name), id(scheduler)))
        return scheduler

    def _clock(self, call: Callable[..., Any], key: int) -> Callable[..., Any]:
        inside = self._inside

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start_s = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                inside[key] = inside.get(key, 0.0) + time.thread_time() - start_s

        return clocked

    def _send(
        self,
        traffic: Traffic,
        seed: int,
        session: int,
        turn: int,
        contexts: list[list[int]],
        fresh: list[list[int]],
        open_turns: dict[str, tuple[int, int]],
    ) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        new = traffic.new_tokens if turn else traffic.first_tokens
        contexts[session] += fresh[session][:new]
        del fresh[session][:new]
        hints = {
            "marsbench_session": f"{seed}/{session}",
            "marsbench_turn": turn,
            "marsbench_tools": ["bash"],
            "marsbench_last": int(turn + 1 == traffic.turns),
        }
        sampling = SamplingParams(
            max_tokens=traffic.output_tokens, temperature=0.0, ignore_eos=True, extra_args=hints
        )
        self._made += 1
        request = EngineCoreRequest(
            f"{self._made:08d}", list(contexts[session]), None, sampling, None, float(self._made),
            None, None, None,
        )  # fmt: skip
        open_turns[request.request_id] = session, turn
        self._core.add_request(*self._core.preprocess_add_request(request))

    def close(self) -> None:
        for scheduler in self._schedulers.values():
            if scheduler is not self._core.scheduler:
                scheduler.shutdown()
        self._core.shutdown()


def measure_engine(mode: str, layers: int, traffic: Traffic, repeats: int) -> dict[str, Any]:
    """All contenders in turn, segment by segment, on one core."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    names = (STOCK, NULL, MARS)
    segments: dict[str, list[Segment]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "model", max_model_len=MAX_MODEL_LEN, layers=layers)
        engine = BenchedCore(mode, model, traffic)
        for name in names[1:]:
            engine.add(name, Path(folder))
        for name in names:
            engine.play(name, traffic, 0)
        for number in range(repeats):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                segments[name].append(engine.play(name, traffic, number + 1))
        engine.close()
    return {
        "mode": mode,
        "load": f"{layers} layers",
        "sessions": traffic.sessions,
        "traffic": asdict(traffic),
        "steps": {name: played[0].steps for name, played in segments.items()},
        **rates(segments, traffic.tokens),
        "scheduler_us_per_step": {
            name: statistics.median(s.scheduler_s / s.steps * 1e6 for s in played)
            for name, played in segments.items()
        },
        "throughput_lost": {name: lost(segments[name], segments[STOCK]) for name in names[1:]},
    }


def rates(segments: dict[str, list[Segment]], tokens: int) -> dict[str, Any]:
    """Tokens per second of CPU time, and of time."""
    per_cpu_s = {name: [tokens / s.cpu_s for s in played] for name, played in segments.items()}
    per_s = {name: [tokens / s.wall_s for s in played] for name, played in segments.items()}
    return {
        "tokens_per_cpu_s": summary(per_cpu_s, "tokens_per_cpu_s", STOCK),
        "tokens_per_s": summary(per_s, "tokens_per_s", STOCK),
    }


def lost(ours: list[Segment], stock: list[Segment]) -> dict[str, float]:
    """Share of the throughput that goes into what our scheduler needs beyond the stock one."""
    whole_s = statistics.median(s.cpu_s for s in (*ours, *stock))
    shares = []
    for a, b in zip(ours, stock, strict=True):
        more_s = a.scheduler_s - b.scheduler_s
        shares.append(more_s / (whole_s + more_s))
    low, high = interval(shares)
    return {"share": statistics.median(shares), "low": low, "high": high}


def engine_cells(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Both modes, each in a process of its own."""
    os.environ |= {
        "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    traffic = Traffic(sessions=given.sessions)
    cells = []
    for mode in given.modes:
        cell = in_child(partial(measure_engine, mode, given.layers, traffic, given.repeats))
        cells.append(cell)
        for key in ("tokens_per_cpu_s", "tokens_per_s"):
            parts = [told(name, row, key, key) for name, row in cell[key].items()]
            print(f"engine, {mode:5} {cell['load']}: {'; '.join(parts)}", flush=True)
        for name, row in cell["throughput_lost"].items():
            print(
                f"engine, {mode:5} {cell['load']}: {name} "
                f"{cell['scheduler_us_per_step'][name]:.0f} us a step in the scheduler (stock "
                f"{cell['scheduler_us_per_step'][STOCK]:.0f}): {row['share']:.2%} "
                f"[{row['low']:.2%}, {row['high']:.2%}] of the throughput lost",
                flush=True,
            )
    return cells
