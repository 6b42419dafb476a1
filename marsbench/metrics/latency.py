"""Latency of sessions and turns, in seconds."""

from __future__ import annotations

from marsbench.attribution import WITH_LOADS
from marsbench.metrics.base import Measured, Result, distribution, metric


@metric("s", "lower")
def session_latency_s(cell: Measured) -> Result:
    """Last token - session arrival (backlog included), over completed sessions."""
    return distribution(cell.finished["latency_s"])


@metric("1", "lower")
def session_slowdown(cell: Measured) -> Result:
    """Session latency ÷ latency of the same session alone on an empty system."""
    return distribution(cell.finished["slowdown"])


@metric("s", "lower")
def ttft_s(cell: Measured) -> Result:
    """First token - turn ready, per turn."""
    return distribution(cell.turns["first_token_s"] - cell.turns["ready_s"])


@metric("s", "lower")
def tpot_s(cell: Measured) -> Result:
    """(last token - first token) ÷ (output tokens - 1), per turn with at least two tokens."""
    turns = cell.turns[cell.turns["output_tokens"] >= 2]
    return distribution((turns["end_s"] - turns["first_token_s"]) / (turns["output_tokens"] - 1))


@metric("s", "lower")
def turn_latency_s(cell: Measured) -> Result:
    """Last token - turn ready, per turn."""
    return distribution(cell.turns["end_s"] - cell.turns["ready_s"])


@metric("s", "lower")
def queueing_s(cell: Measured) -> Result:
    """First scheduled - turn ready, per turn (time held by admission included)."""
    return distribution(cell.turns["sched_first_s"] - cell.turns["ready_s"])


@metric("s", "lower")
def admission_s(cell: Measured) -> Result:
    """Admission of the first turn - session arrival, per session."""
    return distribution(cell.sessions["admit_s"] - cell.sessions["arrival_s"])


@metric("s", "neither")
def latency_breakdown_s(cell: Measured) -> Result:
    """Mean seconds of a completed session in each component; they sum to its mean latency."""
    names = [name for name in WITH_LOADS if f"{name}_s" in cell.finished]
    if not len(cell.finished):
        return dict.fromkeys(names)
    return {name: float(cell.finished[f"{name}_s"].mean()) for name in names}
