"""Finished cells of one or several run folders, as the frames tables and figures draw from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from marsbench.errors import ResultsError
from marsbench.frames import flat_cell
from marsbench.runfolder import TABLES, Filters, read_capacity, read_summary, read_table

LATER = ("distinct", "unstable", "active")
"""What not all summaries say: earlier versions', or those without closed loops."""
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
    searches: tuple[dict[str, Any], ...] = ()
    """``capacity.json`` of those runs that are capacity searches."""

    @property
    def x(self) -> str:
        """What to draw against: relative load, numbers of agents, else arrivals per second."""
        known = (name for name in ("load", "active") if self.cells[name].notna().all())
        return next(known, "rate_per_s")

    @property
    def x_label(self) -> str:
        """Axis label of ``x``; of a load, with the sessions per hour that 1.0 stands for."""
        if self.x != "load":
            return "agents at once" if self.x == "active" else "session arrivals (1/s)"
        unit = (self.cells["rate_per_s"] / self.cells["load"]).to_numpy(float)
        if np.isnan(unit).any() or not np.allclose(unit, unit[0], rtol=1e-6):
            return "load (share of capacity)"
        return f"load (1.0 = {_per_hour(unit[0])})"

    @property
    def systems(self) -> list[str]:
        """All systems in the order the runs name them, which every figure and table keeps."""
        return [str(name) for name in self.cells["system"].unique()]

    @property
    def x_values(self) -> list[float]:
        """Distinct loads, ascending (NaN last: closed loop)."""
        return sorted(self.cells[self.x].unique().tolist(), key=lambda x: (np.isnan(x), x))

    @property
    def has_sessions(self) -> bool:
        """Whether every run keeps its tables; a reference run may hold its summary only."""
        wanted = {path / f"{name}.parquet" for path in self.paths for name in TABLES}
        return all(file.is_file() or (file.parent / "cells").is_dir() for file in wanted)

    @staticmethod
    def unstable(cells: pd.DataFrame) -> set[str]:
        """Systems past their stability point in most seeds of these cells (of one load)."""
        share = pd.to_numeric(cells["unstable"]).groupby(cells["system"]).mean()
        return {str(name) for name in share.index[share > 0.5]}

    def place(self, x_value: float) -> str:
        """One of ``x_values`` in words."""
        if np.isnan(x_value):
            return "closed loop"
        if self.x == "active":
            return f"{x_value:.0f} agents"
        return f"load {x_value:.3g}" if self.x == "load" else _per_hour(x_value)

    def at(self, x_value: float) -> ReportData:
        """Only the cells at one load."""
        column = self.cells[self.x]
        same = column.isna() if np.isnan(x_value) else column == x_value
        return replace(self, cells=self.cells[same])

    def only(self, *, seed: int) -> ReportData:
        """Only the cells of one seed."""
        return replace(self, cells=self.cells[self.cells["seed"] == seed])

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

    def turns(self, columns: Sequence[str]) -> pd.DataFrame:
        """These columns of all turns of these cells, with ``run``, ``seed`` and ``system``."""
        parts = []
        for run, cells in self.cells.groupby("run"):
            path, wanted = self.paths[int(str(run))], cells["cell"].tolist()
            filters: Filters = [("cell", "in", wanted)]
            frame = read_table(path, "turns", columns=["cell", *columns], filters=filters)
            labels = cells[["run", "cell", "seed", "system"]]
            parts.append(frame.merge(labels, on="cell", validate="many_to_one"))
        return pd.concat(parts, ignore_index=True)

    def samples(self, run: int, cell: int, *kinds: str) -> pd.DataFrame:
        """Event rows of the given kinds of one cell."""
        wanted: Filters = [("cell", "=", cell), ("kind", "in", list(kinds))]
        return read_table(self.paths[run], "events", filters=wanted)


def load_runs(paths: Sequence[Path]) -> ReportData:
    """Read the summaries of run folders (finished or not).

    Of a capacity search, which runs every system at loads of its own, those cells are kept that all
    its systems and seeds have.
    """
    summaries = [read_summary(path) for path in paths]
    rows = [
        {"run": run, **flat_cell(cell)}
        for run, summary in enumerate(summaries)
        for cell in summary["cells"]
    ]
    if not rows:
        raise ResultsError(f"no finished cell in {', '.join(map(str, paths))}: nothing to report")
    cells = pd.DataFrame(rows)
    for name in LATER:
        if name not in cells:
            cells[name] = np.nan
    for name in ("load", "rate_per_s", "active"):
        cells[name] = cells[name].astype(float)
    searches = {run: found for run, path in enumerate(paths) if (found := read_capacity(path))}
    cells = cells[~cells["run"].isin(searches) | _met_by_all(cells)].reset_index(drop=True)
    if "host_kv_gib" in cells:  # cells that differ in it are never drawn in the same axes
        gib = cells["host_kv_gib"].fillna(0.0)
        host = gib.map(lambda size: f" with {size:g} GiB of host memory" if size else "")
        cells["profile"] = cells["profile"] + host
    run_ids = tuple(str(summary["run_id"]) for summary in summaries)
    shared = cells.groupby("system")["run"].transform("nunique") > 1
    suffix = cells["run"].map(dict(enumerate(run_ids)))
    cells["system"] = cells["system"].where(~shared, cells["system"] + " @ " + suffix)
    return ReportData(tuple(paths), run_ids, cells, tuple(searches.values()))


def _met_by_all(cells: pd.DataFrame) -> pd.Series[bool]:
    """Whether as many systems and seeds have a cell's load as have any of its scenario."""
    place = ["run", *SCENARIO, *(["host_kv_gib"] if "host_kv_gib" in cells else [])]
    groups = cells.groupby([*place, "load", "rate_per_s", "active"], dropna=False)
    count = groups["cell"].transform("size")
    most = count.groupby([cells[name] for name in place], dropna=False).transform("max")
    return count == most


def _per_hour(rate_per_s: float) -> str:
    per_hour = 3600 * rate_per_s
    return f"{per_hour:{',.0f' if per_hour >= 1000 else '.3g'}} sessions/hour"


def spread(cells: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Mean of a metric over seeds with the lowest and highest seed: columns ``by``, ``mean``, ``low``,
    ``high``, ``seeds``. That is how much seeds differ, no interval: systems share their seeds, so
    what is certain about a difference is in the paired ratios.
    """
    values = cells.assign(value=pd.to_numeric(cells[column]))
    grouped = values.groupby(list(by), sort=True, dropna=False)["value"]
    names = {"mean": "mean", "min": "low", "max": "high", "count": "seeds"}
    return grouped.agg(list(names)).reset_index().rename(columns=names)
