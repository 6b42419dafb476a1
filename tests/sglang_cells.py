"""Cells for the two engines with SGLang's rules: random ones, and agents under memory pressure."""

from __future__ import annotations

import dataclasses

from marsbench.core import Session, SharedPrefix, Turn, to_ps
from marsbench.engine.adversary import make_case
from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import FixedScript, run, scripts
from marsbench.system import Policies

COST = StepCost.from_coefficients(
    c_tok=3_000_000, c_pair=400, weights=[8_000_000_000], m_ctx=30_000, o_step=2_000_000_000,
    o_seq=10_000_000,
)  # fmt: skip
UNTIL_PS = to_ps(60.0)


def random_cell(seed: int, **flags: int | str | bool) -> tuple[EngineConfig, list[FixedScript]]:
    """A cell of the adversary with flags of SGLang, and memory for its largest turn."""
    case = make_case(seed)
    page = (1, 1, 16, case.config.block_size)[seed % 4]
    largest = max(p.prompt_tokens + p.output_tokens for s in case.sessions for p in s.turns)
    tokens = max(case.config.num_blocks * case.config.block_size, largest + 2 * page + 4)
    sglang: dict[str, int | str | bool] = {
        "rules": "sglang",
        "long_prefill_token_threshold": 0,
        "long_prefill_token_threshold_adaptive": False,
        "scheduler_reserve_full_isl": True,
        "block_size": page,
        "num_blocks": -(-tokens // page),
        "max_num_batched_tokens": max(case.config.max_num_batched_tokens, 2 * page),
        "policy": "fcfs",
    }
    return dataclasses.replace(case.config, **(sglang | flags)), case.sessions


def coding_agents(
    num: int, page: int = 1, **flags: int | str | bool
) -> tuple[EngineConfig, list[FixedScript]]:
    """Agents as in recorded coding sessions, a tenth as long: one system prompt, contexts that grow to
    some thousand tokens over many turns, short answers, tools of a second, a compaction; memory for
    a few of them.
    """
    sessions = []
    for k in range(num):
        turns = tuple(
            Turn(
                new_input_tokens=400 + 31 * k % 97 if i == 0 else 30 + (53 * i + 17 * k) % 220,
                output_tokens=4 + (29 * i + 11 * k) % 60,
                drop_context_to=900 if i == 17 else None,
                think_s=0.4 + 0.13 * ((3 * i + k) % 7),
            )
            for i in range(22)
        )
        prefix = SharedPrefix("system", 610)
        sessions.append(Session(f"s{k}", turns, arrival_s=0.35 * k, shared_prefix=prefix))
    tokens = 20_000
    config = EngineConfig(
        rules="sglang", num_blocks=tokens // page, block_size=page, max_model_len=60_000,
        max_num_batched_tokens=1024, max_num_seqs=64,
    )  # fmt: skip
    return dataclasses.replace(config, **flags), scripts(sessions)


def play(core, cell, *, policies=None, traced=True):
    """What a core does with a cell."""
    config, sessions = cell
    inside = policies or Policies()
    return run(
        lambda listener: core(config, COST, inside, listener),
        sessions,
        traced=traced,
        until_ps=UNTIL_PS,
    )
