"""Tool calls: how long they queued and ran, and how busy their cores were."""

from __future__ import annotations

from marsbench.metrics.base import Measured, Result, distribution, metric, ratio


@metric("s", "lower")
def tool_queue_s(cell: Measured) -> Result:
    """Tool call started - enqueued, per call."""
    return distribution(cell.calls["started_s"] - cell.calls["enqueued_s"])


@metric("s", "lower")
def tool_run_s(cell: Measured) -> Result:
    """Tool call ended - started, per call (contention for cores included)."""
    return distribution(cell.calls["ended_s"] - cell.calls["started_s"])


@metric("s", "neither")
def tool_wait_s(cell: Measured) -> Result:
    """Last tool result - turn finished, per turn with tools."""
    return distribution(cell.turns.loc[cell.turns["num_tools"] > 0, "tool_wait_s"])


@metric("1", "neither")
def tool_utilisation(cell: Measured) -> Result:
    """Core-seconds of tool work ÷ (tool cores x makespan); none if cores are unlimited."""
    samples, cores = cell.tables.cpu, cell.tables.totals.tool_cores
    if not len(samples):
        return None
    return ratio(float(samples["busy_core_s"].iloc[-1]), cores * cell.makespan_s)
