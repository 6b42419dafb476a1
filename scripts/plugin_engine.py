"""The ``engine`` part of bench_plugin: tokens per second of CPU time with each scheduler.

One vLLM engine core in this process, with a tiny random model on one CPU core: the same model
runner and the same KV memory for all contenders; only the scheduler object is exchanged, whenever
the engine is empty. A segment is the same closed loop of sessions from its first turn to its last.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from plugin_numbers import MARS, NULL, STOCK, summary, told
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
        """KV for all sessions at their longest, and half as much again."""
        longest = self.first_tokens + self.turns * (self.new_tokens + self.output_tokens)
        return self.sessions * (longest // BLOCK + 1) * 3 // 2


class Engine:
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
        self._schedulers = {STOCK: self._core.scheduler}
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
            self._schedulers[name] = cls(
                vllm_config=self._config,
                kv_cache_config=stock.kv_cache_config,
                structured_output_manager=self._core.structured_output_manager,
                block_size=BLOCK,
                hash_block_size=BLOCK,
            )

    def play(self, name: str, traffic: Traffic, seed: int) -> tuple[float, float, float]:
        """(CPU seconds, wall seconds, tokens per step) of one segment with one scheduler."""
        core = self._core
        core.scheduler = self._schedulers[name]
        rng = np.random.default_rng(seed)
        size = traffic.first_tokens + traffic.turns * traffic.new_tokens
        fresh = rng.integers(0, 1000, (traffic.sessions, size)).tolist()
        contexts: list[list[int]] = [[] for _ in fresh]
        open_turns: dict[str, tuple[int, int]] = {}
        gc.collect()
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
        spent = time.process_time() - cpu_s, time.perf_counter() - wall_s
        if made != traffic.tokens:
            raise EngineError(f"{name}: asked for {traffic.tokens} tokens, got {made}")
        return *spent, made / steps

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
    cpu_s: dict[str, list[float]] = {name: [] for name in names}
    wall_s: dict[str, list[float]] = {name: [] for name in names}
    batch = {}
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "model", max_model_len=MAX_MODEL_LEN, layers=layers)
        engine = Engine(mode, model, traffic)
        for name in names[1:]:
            engine.add(name, Path(folder))
        for name in names:
            engine.play(name, traffic, 0)
        for number in range(repeats):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                cpu, wall, batch[name] = engine.play(name, traffic, number + 1)
                cpu_s[name].append(cpu)
                wall_s[name].append(wall)
        engine.close()
    per_cpu_s = {name: [traffic.tokens / s for s in runs] for name, runs in cpu_s.items()}
    per_s = {name: [traffic.tokens / s for s in runs] for name, runs in wall_s.items()}
    return {
        "mode": mode,
        "load": f"{layers} layers",
        "sessions": traffic.sessions,
        "traffic": asdict(traffic),
        "tokens_per_step": batch,
        "tokens_per_cpu_s": summary(per_cpu_s, "tokens_per_cpu_s", STOCK),
        "tokens_per_s": summary(per_s, "tokens_per_s", STOCK),
    }


def engine_cells(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Both modes, each in a process of its own."""
    os.environ |= {
        "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    traffic = Traffic(sessions=given.sessions)
    cells = []
    for mode in given.modes:
        cell = in_child(lambda m=mode: measure_engine(m, given.layers, traffic, given.repeats))
        cells.append(cell)
        for key in ("tokens_per_cpu_s", "tokens_per_s"):
            parts = [told(name, row, key, key) for name, row in cell[key].items()]
            print(f"engine, {mode:5} {cell['load']}: {'; '.join(parts)}", flush=True)
    return cells
