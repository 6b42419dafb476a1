"""Workloads made from measured distributions: one instance per profile, read when first used."""

from __future__ import annotations

from workloads.synthetic.workload import GeneratedWorkload, MixedWorkload

SWE_BENCH = GeneratedWorkload("swe-bench")
SWE_BENCH_SLOW = GeneratedWorkload("swe-bench-slow")
SWE_SHORT = GeneratedWorkload("swe-short")
TERMINAL_BENCH = GeneratedWorkload("terminal-bench")
DEV_INTERACTIVE = GeneratedWorkload("dev-interactive")
GIT_TASK = GeneratedWorkload("git-task")
REPO_LONG = GeneratedWorkload("repo-long")
LONG_TAIL_GAP = GeneratedWorkload("long-tail-gap")
HYBRID = MixedWorkload("hybrid")

__all__ = [
    "DEV_INTERACTIVE",
    "GIT_TASK",
    "HYBRID",
    "LONG_TAIL_GAP",
    "REPO_LONG",
    "SWE_BENCH",
    "SWE_BENCH_SLOW",
    "SWE_SHORT",
    "TERMINAL_BENCH",
    "GeneratedWorkload",
    "MixedWorkload",
]
