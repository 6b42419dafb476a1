"""Shards of a grid: disjoint, complete, and merged into the bytes of one run."""

from __future__ import annotations

import json
import time

import pytest

from marsbench.cli import main
from marsbench.errors import ConfigError
from marsbench.experiment import runner, tasks
from marsbench.experiment.shards import Shard, merge, parse_shard
from marsbench.runfolder import read_summary

GRID = {"system": ["vllm", "static"], "load": [0.5, 1.0], "seeds": 2}
"""Eight cells."""


@pytest.fixture
def no_clock(monkeypatch):
    """What differs between any two runs: the time of day in the run's name, and how long it took."""
    monkeypatch.setattr(runner, "new_run_id", lambda config: "20260101-000000-abcdef")
    monkeypatch.setattr(tasks.time, "perf_counter", lambda: 0.0)
    assert time.perf_counter() == 0.0


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("of", [1, 3, 8, 11])
def test_every_cell_is_in_one_shard(of):
    """Shards 1/N to N/N have each of eight cells once, in order; more shards than cells have none."""
    cells = [Shard(number, of).cells(list(range(8))) for number in range(1, of + 1)]
    assert [cell for part in cells for cell in part] == list(range(8))
    assert max(map(len, cells)) - min(map(len, cells)) <= 1


def test_merged_shards_are_the_unsharded_run(run, no_clock, tmp_path):
    """Three shards, given in any order, make every file of one run, to the byte."""
    whole, _ = run("whole", **GRID)
    parts = [run(f"part{k}", **GRID, shard=Shard(k, 3))[0] for k in (1, 2, 3)]
    assert [len(part.summary["cells"]) for part in parts] == [2, 3, 3]
    merged = merge([part.folder for part in (parts[2], *parts[:2])], tmp_path / "merged")
    expected = contents(whole.folder)
    assert {"config.yaml", "environment.json", "events.parquet", "summary.json"} <= set(expected)
    assert contents(merged.path) == expected


def test_unfinished_folders_count_for_what_they_finished(run, no_clock, tmp_path):
    """A shard whose cells were not yet put together is merged all the same."""
    whole, _ = run("whole", **GRID)
    first, _ = run("a", **GRID, shard=Shard(1, 2))
    rest = RunFolderLeftOpen.of(run, tmp_path)
    merged = merge([first.folder, rest], tmp_path / "merged")
    assert contents(merged.path) == contents(whole.folder)


class RunFolderLeftOpen:
    """The second shard as a process leaves it that is killed before it puts its cells together."""

    @staticmethod
    def of(run, tmp_path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner.RunFolder, "finish", lambda self, complete: None)
            result, _ = run("b", **GRID, shard=Shard(2, 2))
        assert (result.folder / "cells").is_dir()
        return tmp_path / "b"


def test_merge_refuses_what_is_not_one_run(run, tmp_path):
    """Missing and doubled cells, other experiments, other code: one line each, and no folder."""
    grid = {"system": ["vllm", "static"]}
    first, _ = run("first", **grid, shard=Shard(1, 2))
    second, _ = run("second", **grid, shard=Shard(2, 2))
    other, _ = run("other", **grid, sessions=5, shard=Shard(2, 2))
    out = tmp_path / "merged"
    for runs, line in (
        (
            [first],
            r"cell 1 \(static small.jsonl .*\) of 2 in no run: give the folders of all shards",
        ),
        ([first, second, first], "both hold cell 0"),
        ([first, other], "are different experiments: sessions is 6 and 5"),
    ):
        with pytest.raises(ConfigError, match=line):
            merge([each.folder for each in runs], out)
        assert not out.exists()
    environment = json.loads((second.folder / "environment.json").read_text())
    environment["versions"]["numpy"] = "0.1"
    (second.folder / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(ConfigError, match="ran with different versions"):
        merge([first.folder, second.folder], out)


def test_shards_of_several_machines_say_where_they_ran(run, tmp_path):
    """Hosts that differ are kept, each with its shard; equal ones leave no trace."""
    grid = {"system": ["vllm", "static"]}
    parts = [run(f"p{k}", **grid, shard=Shard(k, 2))[0].folder for k in (1, 2)]
    environment = json.loads((parts[1] / "environment.json").read_text())
    environment["host"]["name"] = "node-2"
    (parts[1] / "environment.json").write_text(json.dumps(environment))
    merged = json.loads((merge(parts, tmp_path / "m").path / "environment.json").read_text())
    assert [shard["shard"] for shard in merged["shards"]] == ["1/2", "2/2"]
    assert merged["shards"][1]["host"]["name"] == "node-2"
    assert "shard" not in merged
    assert merged["num_cells"] == 2


def test_a_shard_is_resumed_as_itself(run):
    """--resume continues the shard that the folder holds; as another one it is refused."""
    run("a", **GRID, shard=Shard(1, 3))
    _, recorder = run("a", **GRID, shard=Shard(1, 3), resume=True)
    assert "is complete" in recorder.notes[-1]
    with pytest.raises(ConfigError, match=r"holds shard 1/3; continue it with --shard 1/3"):
        run("a", **GRID, shard=Shard(2, 3), resume=True)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/", "a/b", "-1/3"])
def test_wrong_shards_are_one_line(text):
    """Anything but I/N with 1 <= I <= N."""
    with pytest.raises(ConfigError, match="expected I/N"):
        parse_shard(text)


def test_the_command_line_runs_and_merges_shards(trace, tmp_path, capsys):
    """``run --shard`` twice, then ``merge``: all cells in one folder."""
    given = ["-w", str(trace), "-s", "vllm,static", "-n", "4", "--rate", "0.01", "-q"]
    for k in (1, 2):
        with pytest.raises(SystemExit) as left:
            main(["run", *given, "--no-cache", "--shard", f"{k}/2", "-o", str(tmp_path / str(k))])
        assert left.value.code == 0
    with pytest.raises(SystemExit) as left:
        main(["merge", str(tmp_path / "1"), str(tmp_path / "2"), "-o", str(tmp_path / "all")])
    assert left.value.code == 0
    assert "run folder" in capsys.readouterr().err
    assert [c["system"] for c in read_summary(tmp_path / "all")["cells"]] == ["vllm", "static"]
