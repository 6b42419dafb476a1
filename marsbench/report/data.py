"""Finished cells of one or several run folders, as the frames tables and figures draw from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from marsbench.errors import ResultsError
from marsbench.report.style import in_order
from marsbench.runfolder import Filters, read_summary, read_table

MIN_SEEDS = 3
"""Fewer seeds than this give no interval (with two, Student's t is 12.7 standard errors wide)."""
SCENARIO = ("workload", "profile", "engine", "tool_cores")
"""Cells that differ in one of these are never drawn in the same axes."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Cells to report on."""

    paths: tuple[Path, ...]
    run_ids: tuple[str, ...]
    cells: pd.DataFrame
    """One row a cell: run (index in paths), cell, key fields, arrived/completed/failed, and every
    metric as ``name`` or ``name.part``. ``system`` has the run id added where two runs share it."""

    @property
    def x(self) -> str:
        """What to draw against: relative load, else arrivals per second."""
        return "load" if self.cells["load"].notna().all() else "rate_per_s"

    @property
    def x_label(self) -> str:
        """Axis label of ``x``."""
        return "load (share of capacity)" if self.x == "load" else "session arrivals (1/s)"

    @property
    def systems(self) -> list[str]:
        """All systems in the order of every figure and table."""
        return in_order(self.cells["system"].unique())

    @property
    def x_values(self) -> list[float]:
        """Distinct loads, ascending (NaN last: closed loop)."""
        return sorted(self.cells[self.x].unique().tolist(), key=lambda x: (np.isnan(x), x))

    def place(self, x_value: float) -> str:
        """One of ``x_values`` in words."""
        if np.isnan(x_value):
            return "closed loop"
        return f"load {x_value:.3g}" if self.x == "load" else f"{x_value:.3g} sessions/s"

    def at(self, x_value: float) -> ReportData:
        """Only the cells at one load."""
        column = self.cells[self.x]
        same = column.isna() if np.isnan(x_value) else column == x_value
        return replace(self, cells=self.cells[same])

    def scenarios(self) -> Iterator[tuple[dict[str, Any], ReportData]]:
        """The data split by workload, profile, engine and tool cores."""
        for values, cells in self.cells.groupby(list(SCENARIO), sort=True, dropna=False):
            yield dict(zip(SCENARIO, values, strict=True)), replace(self, cells=cells)

    def sessions(self) -> pd.DataFrame:
        """Top-level sessions of these cells, with ``run`` and the cell's row of ``cells``."""
        parts = []
        for run, cells in self.cells.groupby("run"):
            wanted: Filters = [("cell", "in", cells["cell"].tolist())]
            frame = read_table(self.paths[int(str(run))], "sessions", filters=wanted)
            keep = ["cell", "session_id", "arrival_s", "status", "latency_s", "ideal_s", "slowdown"]
            labels = cells[["run", "cell", *SCENARIO, "load", "rate_per_s", "seed", "system"]]
            frame = frame.loc[frame["parent"] < 0, keep].astype({"session_id": str, "status": str})
            parts.append(frame.merge(labels, on="cell", validate="many_to_one"))
        return pd.concat(parts, ignore_index=True)

    def samples(self, run: int, cell: int, *kinds: str) -> pd.DataFrame:
        """Event rows of the given kinds of one cell."""
        wanted: Filters = [("cell", "=", cell), ("kind", "in", list(kinds))]
        return read_table(self.paths[run], "events", filters=wanted)


def load_runs(paths: Sequence[Path]) -> ReportData:
    """Read the summaries of run folders (finished or not)."""
    summaries = [read_summary(path) for path in paths]
    rows = [
        {"run": run, **_flat(cell)}
        for run, summary in enumerate(summaries)
        for cell in summary["cells"]
    ]
    if not rows:
        raise ResultsError(f"no finished cell in {', '.join(map(str, paths))}: nothing to report")
    cells = pd.DataFrame(rows)
    for name in ("load", "rate_per_s"):
        cells[name] = cells[name].astype(float)
    run_ids = tuple(str(summary["run_id"]) for summary in summaries)
    shared = cells.groupby("system")["run"].transform("nunique") > 1
    suffix = cells["run"].map(dict(enumerate(run_ids)))
    cells["system"] = cells["system"].where(~shared, cells["system"] + " @ " + suffix)
    return ReportData(tuple(paths), run_ids, cells)


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell's entry with metrics and counts beside its key."""
    row = {name: value for name, value in cell.items() if not isinstance(value, dict)}
    row |= cell["sessions"]
    for name, value in cell["metrics"].items():
        if isinstance(value, dict):
            row |= {f"{name}.{part}": number for part, number in value.items()}
        else:
            row[name] = value
    return row


def over_seeds(cells: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean of a metric over seeds with the half-width of its 95 % interval (Student's t; NaN below
    MIN_SEEDS, where it would say nothing): columns ``by``, ``mean``, ``half``, ``seeds``.
    """
    values = cells.assign(value=pd.to_numeric(cells[column]))
    grouped = values.groupby(list(by), sort=True, dropna=False)["value"]
    table = grouped.agg(["mean", "sem", "count"]).reset_index()
    freedom = np.maximum(table["count"] - 1, 1)
    half = table["sem"] * stats.t.ppf(0.975, freedom)
    table["half"] = half.where(table["count"] >= MIN_SEEDS)
    return table.rename(columns={"count": "seeds"}).drop(columns="sem")
