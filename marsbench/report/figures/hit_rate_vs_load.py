"""How much of the prompts does each system find in its KV cache as load grows?"""

from __future__ import annotations

from marsbench.report.chart import Chart, Rule
from marsbench.report.data import ReportData
from marsbench.report.series import over_load


def draw(data: ReportData) -> Chart:
    """Prefix cache hit rate and recomputed tokens; dotted: an infinite cache."""
    hits = over_load(data, "prefix_cache_hit_rate", share=True)
    best = data.cells["theoretical_prefix_cache_hit_rate"].dropna()
    if len(best):
        axis = "y" if len(data.x_values) > 1 else "x"
        hits.marks.append(Rule("infinite cache", float(best.astype(float).mean()), axis))
    return Chart([hits, over_load(data, "recomputed_tokens")], columns=2)
