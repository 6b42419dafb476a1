"""Rates over the measured window, and how busy the engine was."""

from __future__ import annotations

from marsbench.metrics.base import Measured, Result, metric, ratio


@metric("1/s", "higher")
def sessions_per_s(cell: Measured) -> Result:
    """Sessions completed in the window ÷ window."""
    return ratio(len(cell.ended), cell.window_s)


@metric("1/h", "higher")
def sessions_per_gpu_hour(cell: Measured) -> Result:
    """Sessions completed in the window x 3600 ÷ (window x GPUs)."""
    return ratio(len(cell.ended) * 3600.0, cell.window_s * cell.facts.num_gpus)


@metric("1/s", "higher")
def output_tokens_per_s(cell: Measured) -> Result:
    """Output tokens of the window's finished turns ÷ window."""
    return ratio(int(cell.turns["output_tokens"].sum()), cell.window_s)


@metric("1/s", "higher")
def turns_per_s(cell: Measured) -> Result:
    """Finished turns that got ready in the window ÷ window."""
    return ratio(int(cell.turns["end_s"].notna().sum()), cell.window_s)


@metric("s", "lower")
def makespan_s(cell: Measured) -> Result:
    """End of the last session - first arrival, without any cut."""
    return cell.makespan_s


@metric("s", "lower")
def wall_s(cell: Measured) -> Result:
    """How long the cell took to run, by the clock on the wall."""
    return cell.facts.wall_s


@metric("1", "neither")
def gpu_utilisation(cell: Measured) -> Result:
    """Time the engine spent in steps ÷ makespan; of several replicas, ÷ the sum of theirs."""
    replicas = cell.tables.replicas
    if len(replicas):
        return ratio(float(replicas["busy_s"].sum()), float(replicas["up_s"].sum()))
    return ratio(cell.tables.totals.gpu_busy_s, cell.makespan_s)
