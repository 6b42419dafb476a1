"""All declared metrics of a cell, as the entry that goes into ``summary.json``."""

from __future__ import annotations

from typing import Any

from marsbench.metrics import cache, fairness, goodput, latency, throughput, tools
from marsbench.metrics.base import CellFacts, Cut, Metric, declared, measure
from marsbench.tables import CellKey, CellTables

FAMILIES = (latency, throughput, goodput, cache, tools, fairness)


def catalogue() -> list[Metric]:
    """Every metric: the families here in their order, then what others declared."""
    order = [family.__name__ for family in FAMILIES]

    def family(metric: Metric) -> int:
        module = metric.compute.__module__
        return order.index(module) if module in order else len(order)

    return sorted(declared().values(), key=family)


def summarise(
    key: CellKey, tables: CellTables, facts: CellFacts | None = None, cut: Cut | None = None
) -> dict[str, Any]:
    """One cell's entry of ``summary.json``: its key, session counts, and every metric."""
    cut = Cut() if cut is None else cut
    cell = measure(tables, CellFacts() if facts is None else facts, cut)
    entry: dict[str, Any] = key.as_dict()
    entry["sessions"] = {
        "arrived": len(cell.sessions),
        "completed": len(cell.finished),
        "failed": len(cell.sessions) - len(cell.finished),
    }
    entry["window"] = {
        "warmup_s": cut.warmup_s,
        "cooldown_s": cut.cooldown_s,
        "window_s": cell.window_s,
    }
    entry["metrics"] = {metric.name: metric.compute(cell) for metric in catalogue()}
    return entry
