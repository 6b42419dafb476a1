"""Several replicas: sessions that move, how evenly replicas work, and what deaths cost."""

from __future__ import annotations

import pandas as pd

from marsbench.metrics.base import Measured, Result, metric, ratio


@metric("1", "lower", fleet_only=True)
def migrations(cell: Measured) -> Result:
    """Turns of finished sessions, sub-agents included, sent to another replica than the one before."""
    return int(cell.tables.sessions["migrations"].sum())


@metric("1", "lower", fleet_only=True)
def migrated_turns_share(cell: Measured) -> Result:
    """Migrations ÷ turns that had one before them."""
    sessions = cell.tables.sessions
    continued = (sessions["num_turns"] - 1).clip(lower=0)
    return ratio(int(sessions["migrations"].sum()), int(continued.sum()))


@metric("1", "neither", fleet_only=True)
def replica_gpu_utilisation(cell: Measured) -> Result:
    """Of each replica, time in steps ÷ time it lived: least, mean and greatest."""
    share = _busy_share(cell)
    return {"min": float(share.min()), "mean": float(share.mean()), "max": float(share.max())}


@metric("1", "higher", fleet_only=True)
def jain_replicas(cell: Measured) -> Result:
    """Jain's index of the replicas' busy shares: 1 = all work alike."""
    share = _busy_share(cell)
    return ratio(float(share.sum()) ** 2, len(share) * float((share**2).sum()))


@metric("blocks", "lower", fleet_only=True)
def lost_kv_blocks(cell: Measured) -> Result:
    """Blocks with content on replicas when they died."""
    return int(cell.tables.replicas["lost_blocks"].sum())


def _busy_share(cell: Measured) -> pd.Series:
    lived = cell.tables.replicas[cell.tables.replicas["up_s"] > 0]
    share: pd.Series = lived["busy_s"] / lived["up_s"]
    return share
