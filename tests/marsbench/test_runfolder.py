"""Run folders: written cell by cell, merged, read back, and refused in one line when broken."""

from __future__ import annotations

import errno
import json

import pandas as pd
import pytest

from marsbench.environment import environment
from marsbench.errors import ResultsError
from marsbench.events import Kind
from marsbench.metrics import summarise
from marsbench.runfolder import RunFolder, read_summary, read_table, to_json
from marsbench.tables import CellKey, build_tables
from marsbench.trace import io


def key(system: str, seed: int = 0) -> CellKey:
    return CellKey("demo", system, "sim", "h100", 0.9, 0.5, seed, 16)


@pytest.fixture
def write(two_turns):
    log = two_turns.log()
    tables = build_tables(log, ideal_s=[4.0])

    def write(folder: RunFolder, index: int, system: str) -> None:
        folder.write_cell(index, summarise(key(system), tables), log, tables)

    return write


def test_cells_survive_a_killed_run(tmp_path, write):
    """What was finished before a run was killed can be read and need not be run again."""
    folder = RunFolder(tmp_path / "run", "r1")
    write(folder, 2, "mars")
    write(folder, 0, "vllm")
    (folder.path / "cells" / "0001").mkdir()  # killed before cell.json
    assert sorted(RunFolder(folder.path, "r1").finished_cells()) == [0, 2]
    assert not folder.is_complete()
    assert [cell["system"] for cell in read_summary(folder.path)["cells"]] == ["vllm", "mars"]
    assert read_table(folder.path, "sessions")["system"].tolist() == ["vllm", "mars"]


def test_events_keep_their_kinds(tmp_path, write, two_turns):
    """Every event of a cell is read with the name of its own kind, although codes have gaps."""
    folder = RunFolder(tmp_path / "run", "r1")
    write(folder, 0, "vllm")
    kinds = [Kind(code).name for code in two_turns.log().to_numpy()[:, 1]]
    assert "RUN_END" in kinds
    assert read_table(folder.path, "events")["kind"].tolist() == kinds


def test_finish_merges_in_order_of_index(tmp_path, write):
    """The merged tables do not depend on which cell finished first, to the byte."""
    contents = []
    for order in ((0, 1), (1, 0)):
        folder = RunFolder(tmp_path / f"{order}", "r1")
        for index in order:
            write(folder, index, ("vllm", "mars")[index])
        folder.finish()
        assert folder.is_complete()
        contents.append({file.name: file.read_bytes() for file in sorted(folder.path.iterdir())})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [
        "events.parquet", "sessions.parquet", "summary.json", "turns.parquet",
    ]  # fmt: skip


def test_tables_read_back_as_written(tmp_path, write, two_turns):
    """A cell's tables come back with its key in front; events carry names, not codes."""
    folder = RunFolder(tmp_path, "r1")
    write(folder, 0, "vllm")
    write(folder, 1, "mars")
    folder.finish()
    sessions = read_table(tmp_path, "sessions")
    assert sessions["cell"].tolist() == [0, 1]
    assert sessions["load"].tolist() == [0.9, 0.9]
    assert sessions["session_id"].tolist() == ["one", "one"]
    assert sessions["latency_s"].tolist() == [10.0, 10.0]
    assert sessions["status"].tolist() == ["ok", "ok"]
    assert len(read_table(tmp_path, "turns")) == 4
    events = read_table(tmp_path, "events", filters=[("kind", "=", Kind.TOOL_END.name)])
    assert events["name"].tolist() == ["read", "bash"] * 2
    assert events["time_ps"].tolist() == [5_500_000_000_000, 6_000_000_000_000] * 2
    metric = read_summary(tmp_path)["cells"][1]["metrics"]["session_latency_s"]
    assert metric == dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), 10.0)


def test_an_incomplete_finish_keeps_the_parts(tmp_path, write):
    """A run that failed half-way writes its tables and can still be resumed."""
    folder = RunFolder(tmp_path, "r1")
    write(folder, 0, "vllm")
    folder.finish(complete=False)
    assert list(RunFolder(tmp_path, "r1").finished_cells()) == [0]
    assert len(pd.read_parquet(tmp_path / "sessions.parquet")) == 1


def test_cells_of_another_run_are_refused(tmp_path, write):
    """Resuming with a changed config must not mix two runs."""
    write(RunFolder(tmp_path, "r1"), 0, "vllm")
    with pytest.raises(ResultsError, match="holds cells of run r1, not of r2"):
        RunFolder(tmp_path, "r2").finished_cells()


def test_unwritable_places_give_one_line(tmp_path, write):
    """A file where the folder should be, and a full disk, say what to do."""
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(ResultsError, match=r"cannot write .*file.*--out"):
        RunFolder(blocked / "run", "r1")
    with pytest.raises(ResultsError, match=r"cannot write /dev/full/cells"):
        write(_unmade("/dev/full"), 0, "vllm")


def _unmade(path: str) -> RunFolder:
    from pathlib import Path

    folder = RunFolder.__new__(RunFolder)
    folder.path, folder.run_id = Path(path), "r1"
    return folder


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """Readers see the old content or the new, never half of it, and no temporary files stay."""
    from pathlib import Path

    folder = RunFolder(tmp_path, "r1")
    folder.write_text("config.yaml", "old")

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResultsError, match=r"config.yaml: No space left on device"):
        folder.write_text("config.yaml", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "old"


def test_broken_folders_are_refused(tmp_path, write):
    """No run folder, another version, damaged JSON or parquet: one line each, naming the file."""
    with pytest.raises(ResultsError, match="is not a run folder"):
        read_summary(tmp_path)
    with pytest.raises(ResultsError, match=r"turns\.parquet is missing"):
        read_table(tmp_path, "turns")
    (tmp_path / "summary.json").write_text('{"summary_version": 99}')
    with pytest.raises(ResultsError, match="summary_version is 99"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ResultsError, match=r"cannot read .*summary\.json"):
        read_summary(tmp_path)
    (tmp_path / "turns.parquet").write_text("not parquet")
    with pytest.raises(ResultsError, match=r"cannot read .*turns\.parquet"):
        read_table(tmp_path, "turns")


def test_json_has_no_nan():
    """What JSON cannot say becomes null."""
    assert json.loads(to_json({"a": [float("nan"), float("inf"), 1.5]})) == {"a": [None, None, 1.5]}


def test_environment_names_code_versions_and_inputs(tmp_path):
    """environment.json says what a result depends on besides its config."""
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(b"abc")
    content = environment(seeds=[1, 2], input_sha256={"trace.jsonl": io.sha256(trace)})
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content["input_sha256"] == {"trace.jsonl": digest}
    assert content["seeds"] == [1, 2]
    assert content["versions"]["numpy"]
    assert content["git"] is None or len(content["git"]["sha"]) == 40
    assert json.loads(to_json(content)) == content
