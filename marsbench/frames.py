"""A run folder as data frames, for notebooks and scripts: ``marsbench.load``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from marsbench.core import PS_PER_S
from marsbench.errors import ResultsError
from marsbench.events import FIELDS, NUM_PAYLOAD, Kind
from marsbench.runfolder import Filters, read_summary, read_table

PAYLOAD_COLUMNS = "abcdef"[:NUM_PAYLOAD]
_CALL_KEY = ["cell", "session", "turn", "call"]


def flat_cell(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One cell's entry of ``summary.json`` as a row: key, counts, and each metric as ``name`` or
    ``name.part`` (``session_latency_s.p95``).
    """
    row = {name: value for name, value in entry.items() if not isinstance(value, dict)}
    row |= entry["sessions"]
    for name, value in entry["metrics"].items():
        if isinstance(value, dict):
            row |= {f"{name}.{part}": number for part, number in value.items()}
        else:
            row[name] = value
    return row


class RunFrames:
    """The cells of a run folder, or some of them, each table read once when it is first asked for.

    A table is the caller's own from then on: what is changed in it is changed in this object, and
    nowhere else. Times are seconds from the start of the cell, NaN where something did not happen.
    """

    def __init__(self, path: Path | str) -> None:
        """Read ``summary.json``. Raises ResultsError if ``path`` is no run folder, or an empty one."""
        self.path = Path(path)
        summary = read_summary(self.path)
        self.run_id = str(summary["run_id"])
        if not summary["cells"]:
            raise ResultsError(f"{self.path} has no finished cell; let the run finish one first")
        cells = pd.DataFrame([flat_cell(entry) for entry in summary["cells"]])
        self.cells: pd.DataFrame = cells.astype({"load": float, "rate_per_s": float})
        """One row a cell: ``cell``, what was run (workload, system, engine, profile, load, rate_per_s,
        seed, tool_cores), sessions arrived, completed and failed, and every metric of
        ``marsbench list metrics`` as ``name`` or ``name.part``."""

    def __repr__(self) -> str:
        systems = ", ".join(self.cells["system"].unique())
        return f"RunFrames({str(self.path)!r}: {len(self.cells)} cells of {systems})"

    def only(self, **wanted: object) -> RunFrames:
        """The same run with fewer cells: those whose columns equal what is given, or are in the list
        that is given, as in ``run.only(system=["vllm", "mars"], load=0.9)``.

        Raises ResultsError for a column that cells do not have, or if no cell is left.
        """
        kept = self.cells
        for column, value in wanted.items():
            if column not in kept:
                known = ", ".join(str(name) for name in kept.columns if "." not in str(name))
                raise ResultsError(f"cells have no column {column!r} (among others: {known})")
            values = value if isinstance(value, (list, tuple, set)) else [value]
            kept = kept[kept[column].isin(list(values))]
        if kept.empty:
            asked = ", ".join(f"{column}={value!r}" for column, value in wanted.items())
            raise ResultsError(f"{self.path} has no cell with {asked}; see the column of .cells")
        found = RunFrames.__new__(RunFrames)
        found.path, found.run_id, found.cells = self.path, self.run_id, kept.reset_index(drop=True)
        return found

    @cached_property
    def sessions(self) -> pd.DataFrame:
        """One row a session: its cell and key, times, status, latency, ideal latency, slowdown, token
        counts, and the seconds of each part of its latency. Sub-agents have their parent's index in
        ``parent``, which is -1 for all others.
        """
        return self._table("sessions")

    @cached_property
    def turns(self) -> pd.DataFrame:
        """One row a turn: milestones (ready, submit, sched_first, first_token, end), tokens of the prompt
        that were cached, computed and computed again, preemptions, and the parts of its latency.
        """
        return self._table("turns")

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row an event of the information stream, in order of cell and time, with ``time_s``. What
        columns a to f mean depends on the kind: ``samples`` names them.
        """
        frame = self._table("events")
        frame.insert(1, "time_s", frame["time_ps"] / PS_PER_S)
        return frame

    @cached_property
    def calls(self) -> pd.DataFrame:
        """One row a tool call: its session and turn, name and class, when it was enqueued, started and
        ended, whether it failed, and the CPU seconds it took.
        """
        kinds = ("TOOL_ENQUEUED", "TOOL_START", "TOOL_END")
        rows = self._table("events", ("kind", "in", list(kinds)))
        rows["time_s"] = rows["time_ps"] / PS_PER_S
        asked, started, ended = (rows[rows["kind"] == kind].set_index(_CALL_KEY) for kind in kinds)
        frame = asked[["session_id", "name", "tool_class"]].copy()
        frame["enqueued_s"] = asked["time_s"]
        frame["started_s"] = started["time_s"]
        frame["ended_s"] = ended["time_s"]
        frame["error"] = ended["c"].reindex(frame.index, fill_value=0).astype(bool)
        frame["cpu_s"] = ended["d"].reindex(frame.index, fill_value=0) / PS_PER_S
        return frame.sort_index().reset_index().rename(columns={"turn": "turn_index"})

    def samples(self, kind: str) -> pd.DataFrame:
        """The events of one kind (``KV_STATS``, ``CPU_STATS``, ``GPU_PREEMPT``, ...) with the names of
        their payload; what is in picoseconds becomes seconds. Raises ResultsError for an unknown kind.
        """
        if kind not in Kind.__members__:
            raise ResultsError(
                f"unknown kind of event {kind!r} (known: {', '.join(Kind.__members__)})"
            )
        frame = self._table("events", ("kind", "=", kind))
        frame.insert(1, "time_s", frame["time_ps"] / PS_PER_S)
        named = ["name", "tool_class"]
        for column, field in zip(PAYLOAD_COLUMNS, FIELDS[Kind[kind]], strict=False):
            if field.endswith("_ps"):
                frame[f"{field.removesuffix('_ps')}_s"] = frame[column] / PS_PER_S
            elif field not in named:
                frame[field] = frame[column]
        dropped = ["time_ps", "kind", *PAYLOAD_COLUMNS]
        dropped += [] if set(named) <= set(FIELDS[Kind[kind]]) else named
        return frame.drop(columns=dropped)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved experiment, which ``marsbench run RUN/config.yaml`` repeats."""
        return dict(yaml.safe_load(self._text("config.yaml")))

    @property
    def environment(self) -> dict[str, Any]:
        """Code, versions, machine, seeds and input hashes of the run."""
        return dict(yaml.safe_load(self._text("environment.json")))  # JSON is YAML

    def _table(self, name: str, *more: tuple[str, str, object]) -> pd.DataFrame:
        cells: Filters = [("cell", "in", self.cells["cell"].tolist()), *more]
        return read_table(self.path, name, filters=cells)

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as error:
            raise ResultsError(f"{self.path / name} cannot be read: {error.strerror}") from error
