"""Sessions as lanes: what each of them did in every moment, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from marsbench.attribution import COMPONENTS, WITH_LOADS
from marsbench.report.data import ReportData
from marsbench.report.intervals import Floats


@dataclass(frozen=True, slots=True)
class Lanes:
    """Some sessions of one load and seed, the same ones under every system."""

    place: str
    sessions: list[str]
    """In order of arrival."""
    arrived: int
    """How many there are in the cell."""
    components: tuple[str, ...]
    turns: dict[str, pd.DataFrame]
    """System -> session_id, turn_index, ready_s and the seconds of each component, one row a turn.
    Within a turn the components are drawn in the order of the attribution; a wait after a preemption
    is part of the queue."""


def lanes(data: ReportData, most: int) -> Lanes | None:
    """Lanes of at most ``most`` sessions, evenly spaced by arrival, at the highest load and the first
    seed; None without tables. Sub-agents stand in the lane of their parent's tool.
    """
    if not data.has_sessions:
        return None
    load = data.x_values[-1]
    here = data.at(load)
    first = here.cells["seed"].min()
    here = here.only(seed=first)
    sessions = here.sessions().sort_values("arrival_s", kind="stable")
    one = sessions[sessions["system"] == here.systems[0]]["session_id"].tolist()
    spaced = np.linspace(0, len(one) - 1, min(most, len(one))).round().astype(int)
    chosen = [one[k] for k in np.unique(spaced)]
    components = components_of(here)
    parts = [f"{name}_s" for name in components]
    columns = ["session_id", "turn_index", "ready_s", *parts]
    turns = here.turns(columns).astype({"session_id": str}).fillna(dict.fromkeys(parts, 0.0))
    turns = turns[turns["session_id"].isin(chosen)].dropna(subset=["ready_s"])
    by_system = {
        str(system): part[columns].sort_values(["session_id", "turn_index"])
        for system, part in turns.groupby("system", sort=False)
    }
    place = f"{here.place(load)}, seed {first}"
    return Lanes(place, chosen, len(one), components, by_system)


def components_of(data: ReportData) -> tuple[str, ...]:
    """What latency is attributed to; loads from host memory where a cell has some."""
    loads = data.cells.get("latency_breakdown_s.load")
    return COMPONENTS if loads is None or loads.isna().all() else WITH_LOADS


@dataclass(frozen=True, slots=True)
class Runs:
    """What a session mostly did in each stretch of time, stretches of one kind joined."""

    starts: list[float]
    lengths: list[float]
    components: list[int]
    """Positions in the lanes' components."""


def runs(turns: pd.DataFrame, components: Sequence[str], step_s: float) -> Runs:
    """A session's turns as no more pieces than can be seen: time in steps, and the component that
    took most of each. Pieces shorter than a step would be drawn as a blur of all colours.
    """
    parts = turns[[f"{name}_s" for name in components]].to_numpy()
    ends = turns["ready_s"].to_numpy()[:, None] + np.cumsum(parts, axis=1)
    first, last = float(turns["ready_s"].iloc[0]), float(ends.max())
    edges = np.arange(first, last + step_s, step_s)
    spent = np.stack(
        [_spent(ends[:, k] - parts[:, k], ends[:, k], edges) for k in range(parts.shape[1])]
    )
    kinds = spent.argmax(axis=0)
    kinds[spent.max(axis=0) <= 0] = -1
    change = np.flatnonzero(np.diff(kinds, prepend=-2))
    stop = np.append(change[1:], len(kinds))
    kept = [(a, b) for a, b in zip(change.tolist(), stop.tolist(), strict=True) if kinds[a] >= 0]
    starts = [float(edges[a]) for a, _ in kept]
    lengths = [min(float(edges[b]), last) - float(edges[a]) for a, b in kept]
    return Runs(starts, lengths, [int(kinds[a]) for a, _ in kept])


def _spent(starts: Floats, ends: Floats, edges: Floats) -> Floats:
    """Seconds of one component between each pair of edges; its pieces do not overlap."""
    times = np.column_stack([starts, ends]).ravel()
    total = np.column_stack([np.zeros(len(starts)), ends - starts]).ravel().cumsum()
    return np.diff(np.interp(edges, times, total))
