"""What the tests of SGLang's scheduler share: small cells and their timelines."""

from __future__ import annotations

import dataclasses

import pytest
import small_cores
from small_cores import COST, MS

from marsbench.engine.base import EngineConfig
from marsbench.engine.parity import RunLog
from marsbench.system import Policies


class Bench:
    """Makes cores whose steps all take 1 ms, and reads what they told."""

    MS = MS
    COST = COST
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

    request = staticmethod(small_cores.request)
    finish = staticmethod(small_cores.finish)
    told = staticmethod(small_cores.told)

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
