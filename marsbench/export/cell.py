"""One cell of a run folder as the exporters read it: its sessions as spans, its samples, its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from marsbench.errors import ConfigError
from marsbench.events import FIELDS, Kind
from marsbench.export.spans import SessionSpan, SpanAssembler
from marsbench.frames import PAYLOAD_COLUMNS, RunFrames
from marsbench.runfolder import KEY_FIELDS


@dataclass(frozen=True, slots=True)
class CellSpans:
    """What a cell's timeline consists of."""

    run_id: str
    cell: int
    key: dict[str, Any]
    """What was run: the fields of ``tables.CellKey``."""
    sessions: list[SessionSpan]
    """In order of index."""
    end_ps: int


def only_cell(run: RunFrames) -> int:
    """The number of the run's one cell; ConfigError that says how to choose if there are several."""
    numbers = run.cells["cell"].tolist()
    if len(numbers) > 1:
        raise ConfigError(
            f"{run.path}: {len(numbers)} cells are left, a timeline shows one; choose with --cell N "
            f"({numbers[0]} to {numbers[-1]}) or --system, --load, --seed"
        )
    return int(numbers[0])


def read_cell(run: RunFrames, cell: int) -> CellSpans:
    """The spans of one cell of a run folder."""
    chosen = run.only(cell=cell)
    row = chosen.cells.iloc[0]
    key = {name: plain(row[name]) for name in KEY_FIELDS if name in row and pd.notna(row[name])}
    events = chosen.events
    names = events.loc[events["session"] >= 0, ["session", "session_id"]].drop_duplicates()
    ids = dict(zip(names["session"], names["session_id"].astype(str), strict=True))
    assembler = SpanAssembler([ids.get(k, "") for k in range(max(ids, default=-1) + 1)])
    sessions = list(_assembled(assembler, events))
    end_ps = int(events["time_ps"].max())
    sessions += assembler.rest(end_ps)
    return CellSpans(run.run_id, cell, key, sorted(sessions, key=lambda s: s.session), end_ps)


def plain(value: Any) -> Any:
    """A cell's value without numpy's type."""
    return value.item() if hasattr(value, "item") else value


def _assembled(assembler: SpanAssembler, events: pd.DataFrame) -> Iterator[SessionSpan]:
    columns = ["time_ps", "kind", "session", "turn", "call", "name", "tool_class", *PAYLOAD_COLUMNS]
    texts = {name: events[name].astype(object).fillna("") for name in ("name", "tool_class")}
    rows = events.assign(kind=events["kind"].astype(str), **texts)[columns]
    for time_ps, kind, session, turn, call, name, tool_class, *args in rows.itertuples(
        index=False, name=None
    ):
        known = Kind[kind]
        found = assembler.add(
            time_ps, known, session, turn, call, args[: len(FIELDS[known])], name, tool_class
        )
        if found is not None:
            yield found
