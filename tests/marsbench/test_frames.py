"""``marsbench.load``: a run as data frames, the same numbers as in its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import marsbench
from marsbench.errors import ResultsError
from marsbench.runfolder import RunFolder, read_summary, read_table
from marsbench.tables import CellKey, build_tables

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "results/reference/small"


@pytest.fixture(scope="module")
def run():
    return marsbench.load(SMALL)


def test_importing_it_is_cheap():
    """`import marsbench` loads neither pandas nor numpy; `load` does."""
    code = (
        "import sys, marsbench; early = {'numpy', 'pandas', 'pydantic'} & set(sys.modules)\n"
        f"marsbench.load({str(SMALL)!r}); print(sorted(early), 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] True"


def test_cells_are_the_summary(run):
    """One row a cell with key, counts and metrics by their names of summary.json."""
    entries = read_summary(SMALL)["cells"]
    assert len(run.cells) == len(entries)
    for row, entry in zip(run.cells.to_dict("records"), entries, strict=True):
        assert row["system"] == entry["system"]
        assert row["completed"] == entry["sessions"]["completed"]
        assert row["session_latency_s.p95"] == entry["metrics"]["session_latency_s"]["p95"]
        assert row["preemptions"] == entry["metrics"]["preemptions"]


def test_tables_are_the_files(run):
    """Sessions, turns and events are the parquet files; means of sessions are the metrics of cells."""
    assert len(run.sessions) == len(read_table(SMALL, "sessions"))
    assert len(run.turns) == len(read_table(SMALL, "turns"))
    assert len(run.events) == len(read_table(SMALL, "events"))
    assert run.events["time_s"].max() == run.events["time_ps"].max() / 1e12
    own = run.sessions[run.sessions["parent"] < 0]
    means = own.groupby("cell")["latency_s"].mean().to_numpy()
    assert np.allclose(means, run.cells["session_latency_s.mean"])


def test_calls_are_the_table_of_calls(two_turns, tmp_path):
    """Tool calls put together from events equal those that metrics are made of."""
    log = two_turns.log()
    folder = RunFolder(tmp_path / "run", "r")
    key = CellKey("w", "s", "sim", "p", None, 0.5, 0, 0).as_dict()
    entry = {**key, "sessions": {"arrived": 1}, "metrics": {}}
    tables = build_tables(log)
    folder.write_cell(0, entry, log, tables)
    folder.finish()
    calls = marsbench.load(folder.path).calls
    wanted = tables.calls
    for column in ("session", "turn_index", "call", "enqueued_s", "started_s", "ended_s", "error", "cpu_s"):  # fmt: skip
        assert calls[column].tolist() == wanted[column].tolist(), column
    for column in ("name", "tool_class"):
        assert calls[column].astype(str).tolist() == wanted[column].astype(str).tolist()


def test_samples_are_named(run):
    """The payload of one kind of event has the names of its fields, picoseconds as seconds."""
    kv = run.samples("KV_STATS")
    assert {"time_s", "free_blocks", "referenced_blocks"} <= set(kv.columns)
    assert not {"a", "b", "name", "time_ps"} & set(kv.columns)
    cpu = run.samples("CPU_STATS")
    raw = run.events[run.events["kind"] == "CPU_STATS"]
    assert np.allclose(cpu["busy_core_s"].to_numpy(), raw["c"].to_numpy() / 1e12)
    assert {"name", "tool_class"} <= set(run.samples("TOOL_START").columns)
    with pytest.raises(ResultsError, match="unknown kind of event 'KV'"):
        run.samples("KV")


def test_fewer_cells(run):
    """`only` keeps cells that equal what is given, and reads the tables of those alone."""
    mars = run.only(system="mars", load=0.5)
    assert set(mars.cells["system"]) == {"mars"}
    assert set(mars.sessions["system"].astype(str)) == {"mars"}
    assert set(mars.calls["cell"]) == set(mars.cells["cell"])
    assert len(run.only(system=["vllm", "mars"]).cells) == 2 * len(run.only(system="mars").cells)
    assert "of vllm, continuum, mars" in repr(run)
    with pytest.raises(ResultsError, match="no column 'systm'"):
        run.only(systm="mars")
    with pytest.raises(ResultsError, match="no cell with system='marz'"):
        run.only(system="marz")


def test_what_it_was_run_with(run, tmp_path):
    """Config and environment are the run's files; what is missing is one line."""
    assert run.config["system"] == ["vllm", "continuum", "mars"]
    with pytest.raises(ResultsError, match=r"environment.json cannot be read"):
        assert run.environment
    with pytest.raises(ResultsError, match="is not a run folder"):
        marsbench.load(tmp_path)


def test_reading_writes_nothing(run, tmp_path):
    """No file of the run folder is made or changed."""
    before = {path: path.stat().st_mtime_ns for path in SMALL.iterdir()}
    assert isinstance(marsbench.load(SMALL).turns, pd.DataFrame)
    assert {path: path.stat().st_mtime_ns for path in SMALL.iterdir()} == before
