"""What the plug-in costs in SGLang's scheduler: microseconds of CPU time per step.

SGLang's own scheduler in this process, with a model that only returns tokens: as it is, and as the
plug-in puts it into a server, with policies that do nothing and with MARS, joined to a control plane
that says nothing. So many sessions decode, and nothing else happens; a step is all that the
scheduler's loop does but the forward pass. Contenders take turns; medians are told, and the
quotient to SGLang alone. Starts itself again in .venv-sglang.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.interpreters import available, find_python
from marsbench.engine.sglang.clock import CLOCK
from marsbench.errors import MarsbenchError

STOCK, NULL, MARS = "sglang", "plug-in, null policies", "plug-in, MARS"
SYSTEMS = {NULL: "vllm", MARS: "mars"}
PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
PROMPT = 64
STEP_PS = 8_000_000_000
"""By the clock that SGLang is given here."""


class PluginLane:
    """A scheduler with sessions that decode for ever."""

    def __init__(self, name: str, sessions: int) -> None:
        from marsbench.engine.sglang.runtime import build, quietly

        with quietly():
            from marsbench.engine.sglang import scheduler as embedded
            from marsbench.engine.sglang.requests import SglangRequestFactory

        stock = embedded.EmbeddedScheduler
        config = EngineConfig(
            num_blocks=sessions * 8192 + 8192, block_size=1, max_num_seqs=max(sessions, 2),
            max_model_len=8192,
        )  # fmt: skip
        if name != STOCK:
            from marsbench.engine.sglang.served import ServedSglangScheduler

            folder = tempfile.mkdtemp(prefix="marsbench-bench-")
            told = {"system": SYSTEMS[name], "profile": PROFILE}
            told |= {end: f"ipc://{folder}/{end}" for end in ("listen", "publish")}
            os.environ["MARSBENCH_SGLANG"] = json.dumps(told)
            embedded.EmbeddedScheduler = type("Inside", (ServedSglangScheduler, stock), {})  # type: ignore[misc]
        try:
            self.runtime = build(config)
        finally:
            embedded.EmbeddedScheduler = stock  # type: ignore[misc]
        self.scheduler: Any = self.runtime.scheduler
        self.scheduler.drive_by(self)
        factory = SglangRequestFactory(1, priorities=False, sessions=False)
        with self.runtime.active():
            for session in range(sessions):
                made, _ = factory.make(
                    Request(
                        session=session, turn_index=0, prompt_tokens=PROMPT, reused_tokens=0,
                        output_tokens=1, prefix_id=-1, prefix_tokens=0, session_arrival_ps=0,
                        ready_ps=0, priority=0, is_last=False, tool_names=("bash",),
                    )
                )  # fmt: skip
                made.session_id = str(session)
                self.scheduler.handle_generate_request(made)
            while len(self.scheduler.running_batch.reqs) < sessions or self.scheduler.waiting_queue:
                self.step()

    def next_token(self, request: Any) -> int:
        return 7

    def requeued(self, request: Any) -> None:
        """Nothing is retracted here."""

    def evicted(self, num_tokens: int) -> None:
        """Nothing is evicted here."""

    def step(self) -> int:
        """One step, and its nanoseconds outside the forward pass."""
        scheduler, clock = self.scheduler, time.thread_time_ns
        CLOCK.now_ps += STEP_PS
        start_ns = clock()
        plan = scheduler.get_next_batch_to_run(
            running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
        )
        scheduler.running_batch = plan.running_batch
        batch = scheduler.last_batch = plan.batch_to_run
        spent_ns = clock() - start_ns
        assert batch is not None
        result = scheduler.run_batch(batch)
        start_ns = clock()
        scheduler.process_batch_result(batch, result)
        return spent_ns + clock() - start_ns

    def measure(self, steps: int) -> float:
        """Microseconds per step."""
        with self.runtime.active():
            return sum(self.step() for _ in range(steps)) / steps / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="in a round of each contender")
    given = parser.parse_args()
    if not available("sglang"):
        try:
            python = str(find_python("sglang"))
        except MarsbenchError as error:
            print(f"bench_sglang_plugin: {error}", file=sys.stderr)
            return 1
        os.execv(python, [python, *sys.argv])  # noqa: S606
    for sessions in given.running:
        lanes = {name: PluginLane(name, sessions) for name in (STOCK, NULL, MARS)}
        found: dict[str, list[float]] = {name: [] for name in lanes}
        gc.collect()
        gc.disable()
        for _ in range(given.rounds):
            for name, lane in lanes.items():
                found[name].append(lane.measure(given.steps))
        gc.enable()
        alone = statistics.median(found[STOCK])
        parts = [f"{STOCK} {alone:.0f} us"]
        for name in (NULL, MARS):
            ratios = [ours / theirs for ours, theirs in zip(found[name], found[STOCK], strict=True)]
            more = statistics.median(found[name]) - alone
            parts.append(f"{name} {more:+.0f} us ({statistics.median(ratios):.2f}x)")
        print(f"{sessions:4} running: {'; '.join(parts)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
