"""How much of the prompts does each system find in its KV cache as load grows?"""

from __future__ import annotations

from matplotlib.figure import Figure

from marsbench.report.data import ReportData
from marsbench.report.series import draw_series
from marsbench.report.style import legend, panels


def draw(data: ReportData) -> Figure:
    """Prefix cache hit rate and recomputed tokens; dotted: an infinite cache."""
    figure, (left, right) = panels(1, 2)
    draw_series(left, data, "prefix_cache_hit_rate")
    draw_series(right, data, "recomputed_tokens")
    against_load = len(data.x_values) > 1
    best = data.cells["theoretical_prefix_cache_hit_rate"].dropna()
    if len(best):
        line = left.axhline if against_load else left.axvline
        line(
            float(best.astype(float).mean()), color="#222222", linestyle=":", label="infinite cache"
        )
    left.set(**{"ylim" if against_load else "xlim": (0, 1.02)})
    if against_load or len(best):
        legend(figure, left)
    return figure
