"""Sessions that met their SLO: latency at most α times the session's own ideal."""

from __future__ import annotations

import pandas as pd

from marsbench.metrics.base import ALPHAS, Measured, Result, metric, ratio


def _met(sessions: pd.DataFrame, alpha: str) -> int:
    """How many completed within ``alpha`` times their ideal; those that failed did not."""
    return int((sessions["latency_s"] <= float(alpha) * sessions["ideal_s"]).sum())


@metric("1/s", "higher")
def session_goodput_per_s(cell: Measured) -> Result:
    """Sessions completed in the window with latency <= α x ideal ÷ window, by α."""
    if cell.sessions["ideal_s"].isna().all():
        return dict.fromkeys(ALPHAS)
    return {alpha: ratio(_met(cell.ended, alpha), cell.window_s) for alpha in ALPHAS}


@metric("1", "higher")
def slo_attainment(cell: Measured) -> Result:
    """Sessions with latency <= α x ideal ÷ all that arrived, by α; failed sessions are misses."""
    if cell.sessions["ideal_s"].isna().all():
        return dict.fromkeys(ALPHAS)
    return {alpha: ratio(_met(cell.sessions, alpha), len(cell.sessions)) for alpha in ALPHAS}
