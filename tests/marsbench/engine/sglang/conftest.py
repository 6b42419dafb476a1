"""What the tests of SGLang's scheduler share: small cells and their timelines."""

from __future__ import annotations

import dataclasses

import pytest

from marsbench.core import to_ps
from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import RunLog
from marsbench.system import Policies

MS = to_ps(0.001)


class Bench:
    """Makes cores whose steps all take 1 ms, and reads what they told."""

    MS = MS
    COST = StepCost.from_coefficients(c_tok=0, c_pair=0, weights=[0], m_ctx=0, o_step=MS, o_seq=0)
    CONFIG = EngineConfig(
        num_blocks=640, block_size=1, max_model_len=4096, max_num_batched_tokens=64, max_num_seqs=32
    )
    ROOMY = dataclasses.replace(CONFIG, num_blocks=60_000, max_model_len=50_000)
    """Room for several answers of the 4,096 tokens that SGLang expects at most."""

    def core(self, config=CONFIG, policies=None, cost=COST):
        from marsbench.engine.sglang.core import SglangCore

        log = RunLog()
        core = SglangCore(config, cost, policies or Policies(), log)
        core.trace = log
        return core, log

    def request(
        self, session, prompt, output, *, turn=0, reused=0, ready_ms=0, last=False, priority=0
    ):
        return Request(
            session=session, turn_index=turn, prompt_tokens=prompt, reused_tokens=reused,
            output_tokens=output, prefix_id=-1, prefix_tokens=0, session_arrival_ps=0,
            ready_ps=ready_ms * MS, priority=priority, is_last=last, tool_names=("bash",),
        )  # fmt: skip

    def finish(self, core, now_ps, *, check=True):
        """Advance until nothing is left to run."""
        while not core.idle():
            now_ps = core.advance(now_ps, 1 << 62)
            if check:
                core.check_integrity()
        return now_ps

    def told(self, log, what):
        return [(m.session, m.turn_index, m.values) for m in log.moments if m.what == what]

    def first_scheduled(self, log):
        """Sessions in order of their first step."""
        return [session for session, _, _ in self.told(log, "scheduled first")]


@pytest.fixture
def bench():
    """Small cells on SGLang's scheduler."""
    return Bench()


@pytest.fixture
def short_answers(monkeypatch):
    """SGLang expects answers of at most 40 tokens, so a small memory can be promised twice."""
    from sglang.srt.managers import schedule_policy

    monkeypatch.setattr(schedule_policy, "CLIP_MAX_NEW_TOKENS", 40)
