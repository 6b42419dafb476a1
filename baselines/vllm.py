"""Stock vLLM: first come first served, and its own priority queue fed by the client.

Engine: vLLM V1 (facts in its scheduler source). ``vllm`` is the default configuration: turns
in order of submission, chunked prefill without a threshold, preemption by recomputation,
finished blocks in one LRU list. ``vllm-priority`` is what a deployment can do without touching
the engine: ``--scheduling-policy priority`` with the session's rank of arrival as priority, so
a continuation of an older session passes first turns of younger ones, and the youngest session
is preempted first. Nothing is reproduced here, the engine does all of it; the grid is what an
operator can tune with flags (vLLM's own advice for agents is the long-prefill threshold).
"""

from __future__ import annotations

from marsbench.system import System

FLAGS = {
    "long_prefill_token_threshold": (0, 256, 512, 1024, 2048, 4096),
    "max_num_seqs": (4, 8, 16, 256),
}
"""Engine flags worth tuning for sessions with long prompts and short outputs."""
LIMITS = {"long_prefill_token_threshold": (0, 65_536), "max_num_seqs": (1, 1024)}

VLLM = System(
    name="vllm",
    summary="stock vLLM: FCFS per turn, LRU prefix cache",
    tunable=FLAGS,
    limits=LIMITS,
)

VLLM_PRIORITY = System(
    name="vllm-priority",
    summary="stock vLLM with --scheduling-policy priority; older sessions first",
    engine={"policy": "priority"},
    priority="session_arrival",
    tunable=FLAGS,
    limits=LIMITS,
)
