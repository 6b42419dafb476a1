"""KV memory: prefix hits, work done twice, occupancy, and what retention was worth."""

from __future__ import annotations

import numpy as np

from marsbench.events import Unpin
from marsbench.metrics.base import Measured, Result, metric, ratio


@metric("1", "higher")
def prefix_cache_hit_rate(cell: Measured) -> Result:
    """Σ cached prompt tokens ÷ Σ prompt tokens, over scheduled turns (block-granular)."""
    turns = cell.turns[cell.turns["sched_first_s"].notna()]
    return ratio(int(turns["cached_tokens"].sum()), int(turns["prompt_tokens"].sum()))


@metric("1", "neither")
def theoretical_prefix_cache_hit_rate(cell: Measured) -> Result:
    """The same ratio with an infinite prefix cache: a property of the workload."""
    return cell.facts.theoretical_prefix_cache_hit_rate


@metric("tokens", "lower")
def recomputed_tokens(cell: Measured) -> Result:
    """Σ prompt tokens prefilled although the session had had their KV before."""
    return int(cell.turns["recomputed_tokens"].sum())


@metric("tokens", "lower")
def prefilled_tokens(cell: Measured) -> Result:
    """Σ prompt tokens prefilled."""
    return int(cell.turns["prefilled_tokens"].sum())


@metric("1", "lower")
def preemptions(cell: Measured) -> Result:
    """Times a running turn lost its KV; of a server that tells only their number, over the whole run."""
    seen = int(cell.tables.turns["preemptions"].sum())
    counted = cell.tables.totals.preemptions
    if seen == counted:
        return int(cell.turns["preemptions"].sum())
    whole = len(cell.turns) == len(cell.tables.turns)
    return counted if whole else None


@metric("blocks", "lower")
def evicted_blocks(cell: Measured) -> Result:
    """Cached blocks dropped to make room, over the whole run."""
    return cell.tables.totals.evicted_blocks


@metric("1", "neither")
def kv_utilisation(cell: Measured) -> Result:
    """Time-weighted mean of blocks held by running turns or pins ÷ KV blocks, over the run."""
    samples = cell.tables.kv
    if not len(samples):
        return None
    span = np.diff(samples["time_s"].to_numpy(), prepend=0.0)
    held = float((samples["mean_referenced_mblocks"].to_numpy() * span).sum()) / 1000
    return ratio(held, float(span.sum()) * cell.tables.totals.num_blocks)


@metric("block s", "higher")
def retained_useful_block_s(cell: Measured) -> Result:
    """Σ blocks x time pinned, over pins whose session came back for them."""
    return _pinned_block_s(cell, useful=True)


@metric("block s", "lower")
def retained_wasted_block_s(cell: Measured) -> Result:
    """Σ blocks x time pinned, over pins that expired, were reclaimed, or outlived the session."""
    return _pinned_block_s(cell, useful=False)


@metric("1", "neither", host_only=True)
def gpu_hit_rate(cell: Measured) -> Result:
    """The part of the prefix cache hit rate that was on the GPU when the turn was scheduled."""
    turns = cell.turns[cell.turns["sched_first_s"].notna()]
    on_gpu = int(turns["cached_tokens"].sum()) - int(turns["loaded_tokens"].sum())
    return ratio(on_gpu, int(turns["prompt_tokens"].sum()))


@metric("1", "neither", host_only=True)
def host_hit_rate(cell: Measured) -> Result:
    """The part of the prefix cache hit rate that was loaded from host memory."""
    turns = cell.turns[cell.turns["sched_first_s"].notna()]
    return ratio(int(turns["loaded_tokens"].sum()), int(turns["prompt_tokens"].sum()))


@metric("bytes", "neither", host_only=True)
def stored_bytes(cell: Measured) -> Result:
    """Bytes copied from GPU to host memory, over the whole run."""
    return int(cell.tables.link["d2h_bytes"].iloc[-1])


@metric("bytes", "neither", host_only=True)
def loaded_bytes(cell: Measured) -> Result:
    """Bytes copied from host memory to the GPU, over the whole run."""
    return int(cell.tables.link["h2d_bytes"].iloc[-1])


@metric("1", "neither", host_only=True)
def store_link_utilisation(cell: Measured) -> Result:
    """Time in which the link copied to host memory ÷ time of the run."""
    return _busy_share(cell, "d2h_busy_s")


@metric("1", "neither", host_only=True)
def load_link_utilisation(cell: Measured) -> Result:
    """Time in which the link copied to the GPU ÷ time of the run."""
    return _busy_share(cell, "h2d_busy_s")


@metric("s", "lower", host_only=True)
def store_stall_s(cell: Measured) -> Result:
    """Time in which steps waited for a store whose blocks they needed, over the whole run."""
    return float(cell.tables.link["stall_s"].iloc[-1])


@metric("blocks", "lower", host_only=True)
def host_evicted_blocks(cell: Measured) -> Result:
    """Blocks dropped from host memory to make room, over the whole run."""
    return int(cell.tables.host["evicted_blocks"].iloc[-1])


@metric("1", "neither", host_only=True)
def host_kv_utilisation(cell: Measured) -> Result:
    """Time-weighted mean of blocks in host memory ÷ blocks it holds, over the run."""
    samples = cell.tables.host
    span = np.diff(samples["time_s"].to_numpy(), prepend=0.0)
    held = float((samples["resident_blocks"].to_numpy() * span).sum())
    return ratio(held, float(span.sum()) * int(samples["num_blocks"].iloc[-1]))


def _busy_share(cell: Measured, column: str) -> Result:
    return ratio(float(cell.tables.link[column].iloc[-1]), cell.tables.totals.end_s)


def _pinned_block_s(cell: Measured, *, useful: bool) -> float:
    pins = cell.tables.pins
    pins = pins[(pins["reason"] == Unpin.RETURN) == useful]
    return float((pins["blocks"] * pins["held_s"]).sum())
