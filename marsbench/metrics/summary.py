"""All declared metrics of a cell, as the entry that goes into ``summary.json``."""

from __future__ import annotations

from typing import Any

from marsbench.errors import ConfigError, raised_in
from marsbench.metrics import (
    cache,
    fairness,
    goodput,
    latency,
    replicas,
    stability,
    throughput,
    tools,
)
from marsbench.metrics.base import CellFacts, Cut, Measured, Metric, Result, declared, measure
from marsbench.registry import load, table
from marsbench.tables import CellKey, CellTables
from marsbench.trace.workload import original_session

FAMILIES = (latency, throughput, goodput, cache, tools, fairness, stability, replicas)


def catalogue() -> list[Metric]:
    """Every metric: the families here in their order, then those of plug-in packages."""
    for name, path in table("METRICS").items():
        load("METRICS", name)  # its decorator declares it
        if name not in declared():
            raise ConfigError(f"metric {name!r}: {path} is no function with the decorator @metric")
    order = [family.__name__ for family in FAMILIES]

    def family(metric: Metric) -> int:
        module = metric.compute.__module__
        return order.index(module) if module in order else len(order)

    return sorted(declared().values(), key=family)


def summarise(
    key: CellKey, tables: CellTables, facts: CellFacts | None = None, cut: Cut | None = None
) -> dict[str, Any]:
    """One cell's entry of ``summary.json``: its key, session counts, and every metric.

    A metric that raises is null, and what it raised stands under ``failed_metrics``: the simulation
    behind the cell is finished and worth keeping.
    """
    cut = Cut() if cut is None else cut
    cell = measure(tables, CellFacts() if facts is None else facts, cut)
    entry: dict[str, Any] = key.as_dict()
    entry["sessions"] = {
        "arrived": len(cell.sessions),
        "distinct": cell.sessions["session_id"].astype(str).map(original_session).nunique(),
        "completed": len(cell.finished),
        "failed": len(cell.sessions) - len(cell.finished),
    }
    entry["window"] = {
        "warmup_s": cut.warmup_s,
        "cooldown_s": cut.cooldown_s,
        "window_s": cell.window_s,
    }
    with_host, with_fleet = bool(len(tables.host)), bool(len(tables.replicas))
    entry["metrics"], failed = {}, {}
    for metric in catalogue():
        if (metric.host_only and not with_host) or (metric.fleet_only and not with_fleet):
            continue
        value, problem = _computed(metric, cell)
        entry["metrics"][metric.name] = value
        if problem:
            failed[metric.name] = problem
    if failed:
        entry["failed_metrics"] = failed
    return entry


def _computed(metric: Metric, cell: Measured) -> tuple[Result, str]:
    """The metric's value, or null with what its function raised and where."""
    try:
        return metric.compute(cell), ""
    except Exception as error:  # noqa: BLE001 - a plug-in's function may raise anything
        module = metric.compute.__module__
        return None, raised_in(error, lambda frame: frame.f_globals.get("__name__") == module)
